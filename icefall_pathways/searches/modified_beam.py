"""Modified beam search over all hypotheses of all streams at once, with one step per frame."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.ranges import PositiveInt
from icefall_pathways.searches.base import SearchOptions, TransducerHead
from icefall_pathways.searches.frame_search import BeamState, FrameSearch, flat_index, take
from icefall_pathways.searches.shallow_fusion import ShallowFusionOptions
from icefall_pathways.searches.token_scorer import TokenScorer

# A random odd multiplier, so that hash collisions of different token sequences are negligible.
_HASH_MULTIPLIER = -7046029254386353131


@dataclass(frozen=True)
class _Beam:
    """Tensors of a `BeamState` that change in every frame; the token history is written once per `advance`.

    Attributes:
      history: (N, beam, 2 + context_size) hash, number of tokens and last tokens of each hypothesis. They are in one
        tensor because they are reordered together.
      log_probs, bonus, scorer_states, predictor_out: As in `BeamState`.
    """

    history: Tensor
    log_probs: Tensor
    bonus: Tensor
    scorer_states: Tensor
    predictor_out: Tensor


@dataclass(frozen=True)
class _Expansion:
    """Best expansions of the beam by one frame.

    Attributes:
      parents: (N, beam) index of the hypothesis that is expanded.
      tokens: (N, beam) token that is appended; a blank leaves the hypothesis unchanged.
      token_log_probs: (N, beam) its log-probability.
      log_probs: (N, beam) log-probabilities, including the token.
      bonus: (N, beam) scores of the token scorers, including the token.
      scorer_states: (N, beam, A) states after the token.
    """

    parents: Tensor
    tokens: Tensor
    token_log_probs: Tensor
    log_probs: Tensor
    bonus: Tensor
    scorer_states: Tensor


class ModifiedBeamSearch(FrameSearch):
    """Beam search that emits at most one token per frame and merges hypotheses with the same tokens.

    Args:
      model: A transducer; only its predictor and joiner are used.
      beam_size: Number of hypotheses kept per stream.
      blank_penalty: Subtracted from the logit of the blank; larger values give fewer deletions.
      scorers: Hotwords and language models for shallow fusion, whose scores are added to those of the tokens before
        the best expansions are selected. They score the blank as 0.
    """

    def __init__(
        self,
        model: TransducerHead,
        beam_size: int = 4,
        blank_penalty: float = 0.0,
        scorers: Sequence[TokenScorer] = (),
    ) -> None:
        super().__init__(model, beam_size, blank_penalty, scorers)

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor) -> BeamState:
        """Process the next frames of every stream; see `Search.advance`. `state` is not modified."""
        num_frames = int(lens.max())
        if num_frames == 0:
            return state
        lens = lens.to(encoder_out.device)
        frames = self.model.joiner.encoder_proj(encoder_out)
        min_frames = int(lens.min())
        beam = self._beam(state)
        expansions = []
        for t in range(num_frames):
            expansion = self._expand(beam, self._logits(frames[:, t : t + 1], beam.predictor_out))
            if t >= min_frames:
                expansion = self._keep_ended_streams(beam, expansion, lens.gt(t)[:, None])
            beam = self._merge(self._apply(beam, expansion))
            expansions.append(expansion)
        tokens, token_log_probs, ancestors = _trace_back(expansions)
        return dataclasses.replace(
            state.reordered(ancestors).extended(tokens, token_log_probs, lens, self.blank_id),
            hashes=beam.history[..., 0],
            log_probs=beam.log_probs,
            bonus=beam.bonus,
            scorer_states=beam.scorer_states,
            predictor_out=beam.predictor_out,
        )

    def _beam(self, state: BeamState) -> _Beam:
        keys = torch.stack([state.hashes, state.num_tokens], dim=2)
        return _Beam(
            history=torch.cat([keys, self._context(state)], dim=2),
            log_probs=state.log_probs,
            bonus=state.bonus,
            scorer_states=state.scorer_states,
            predictor_out=state.predictor_out,
        )

    def _expand(self, beam: _Beam, logits: Tensor) -> _Expansion:
        """Select the best expansions, given logits (N, beam, V)."""
        token_log_probs = logits.log_softmax(dim=-1)
        scores = (token_log_probs + beam.log_probs[..., None]).flatten(1)
        token_log_probs = token_log_probs.flatten(1)
        if self.scorers:
            return self._expand_with_scorers(beam, scores, token_log_probs)
        log_probs, best = scores.topk(self.beam_size, dim=1)
        parents = best.div(self.vocab_size, rounding_mode="floor")
        tokens = best - parents * self.vocab_size
        return _Expansion(parents, tokens, token_log_probs.gather(1, best), log_probs, beam.bonus, beam.scorer_states)

    def _expand_with_scorers(self, beam: _Beam, scores: Tensor, token_log_probs: Tensor) -> _Expansion:
        """Select the best expansions by the sum of log-probabilities `scores` (N, beam * V) and token scores."""
        bonus = beam.bonus[..., None].expand(*beam.bonus.shape, self.vocab_size)
        for index, scorer in enumerate(self.scorers):
            token_scores = scorer.scores(beam.scorer_states[..., index].flatten())
            token_scores[:, self.blank_id] = 0.0
            bonus = bonus + token_scores.view_as(bonus)
        bonus = bonus.flatten(1)
        _, best = (scores + bonus).topk(self.beam_size, dim=1)
        parents = best.div(self.vocab_size, rounding_mode="floor")
        tokens = best - parents * self.vocab_size
        return _Expansion(
            parents,
            tokens,
            token_log_probs=token_log_probs.gather(1, best),
            log_probs=scores.gather(1, best),
            bonus=bonus.gather(1, best),
            scorer_states=self._advance_scorers(take(beam.scorer_states, parents), tokens),
        )

    def _advance_scorers(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the scorer states (N, beam, S) after `tokens` (N, beam); a blank leaves them unchanged."""
        emitting = tokens.ne(self.blank_id).nonzero(as_tuple=True)
        if emitting[0].numel() == 0:
            return states
        advanced = [
            scorer.advance(states[..., index][emitting], tokens[emitting]) for index, scorer in enumerate(self.scorers)
        ]
        return states.index_put(emitting, torch.stack(advanced, dim=1))

    def _keep_ended_streams(self, beam: _Beam, expansion: _Expansion, valid: Tensor) -> _Expansion:
        """Return the expansion where the frame is `valid` (N, 1), and the unchanged beam elsewhere."""
        identity = torch.arange(self.beam_size, device=valid.device)
        return _Expansion(
            parents=torch.where(valid, expansion.parents, identity),
            tokens=expansion.tokens.masked_fill(~valid, self.blank_id),
            token_log_probs=expansion.token_log_probs,
            log_probs=torch.where(valid, expansion.log_probs, beam.log_probs),
            bonus=torch.where(valid, expansion.bonus, beam.bonus),
            scorer_states=torch.where(valid[..., None], expansion.scorer_states, beam.scorer_states),
        )

    def _apply(self, beam: _Beam, expansion: _Expansion) -> _Beam:
        """Return the beam after the frame."""
        history, predictor_out, tokens = beam.history, beam.predictor_out, expansion.tokens
        rows = flat_index(expansion.parents, self.beam_size)
        history = history.flatten(0, 1).index_select(0, rows).view_as(history)
        predictor_out = predictor_out.flatten(0, 1).index_select(0, rows).view_as(predictor_out)
        emits = tokens.ne(self.blank_id)
        emitting = emits.nonzero(as_tuple=True)
        if emitting[0].numel() > 0:
            token = tokens[..., None]
            hashes = (history[..., :1] + token + 1) * _HASH_MULTIPLIER
            extended = torch.cat([hashes, history[..., 1:2] + 1, history[..., 3:], token], dim=2)
            history = torch.where(emits[..., None], extended, history)
            predictor_out = predictor_out.index_put(emitting, self._predict(extended[emitting][:, 2:]))
        return _Beam(history, expansion.log_probs, expansion.bonus, expansion.scorer_states, predictor_out)

    def _merge(self, beam: _Beam) -> _Beam:
        """Merge hypotheses with the same tokens: add their probabilities and empty the slots of the duplicates."""
        keys, log_probs = beam.history[..., :2], beam.log_probs
        same = (keys[:, :, None] == keys[:, None]).all(dim=3)
        # log-sum-exp over the hypotheses with the same tokens: x - log_softmax(x) in one kernel.
        shares = log_probs[:, None].masked_fill(~same, -torch.inf).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
        # Empty slots are duplicates too: initially, they hold the empty hypothesis. A slot with -inf is selected only
        # if everything above it is selected, including the live hypothesis with the same tokens.
        duplicates = same.tril(diagonal=-1).any(dim=2)
        return dataclasses.replace(beam, log_probs=(log_probs - shares).masked_fill(duplicates, -torch.inf))


def _trace_back(expansions: list[_Expansion]) -> tuple[Tensor, Tensor, Tensor]:
    """Trace the final hypotheses back to the first frame.

    Returns:
      Their tokens (N, beam, T), the log-probabilities of these (N, beam, T), and their ancestors (N, beam) before the
      first frame.
    """
    last = expansions[-1]
    tokens, log_probs, ancestors = [last.tokens], [last.token_log_probs], last.parents
    for expansion in reversed(expansions[:-1]):
        tokens.append(expansion.tokens.gather(1, ancestors))
        log_probs.append(expansion.token_log_probs.gather(1, ancestors))
        ancestors = expansion.parents.gather(1, ancestors)
    return torch.stack(tokens[::-1], dim=2), torch.stack(log_probs[::-1], dim=2), ancestors


@dataclass(frozen=True)
class ModifiedBeamSearchOptions(ShallowFusionOptions, SearchOptions):
    """Options of modified beam search."""

    beam_size: PositiveInt = 4
    """For modified_beam_search: hypotheses kept per utterance."""

    def build_search(self, model: TransducerHead, tokenizer: Tokenizer, language: str) -> ModifiedBeamSearch:
        """Build the search; see `SearchOptions.build_search`."""
        scorers = self.build_scorers(tokenizer, language)
        return ModifiedBeamSearch(model, self.beam_size, self.blank_penalty, scorers)

    def file_name_parts(self) -> list[str]:
        """Return the options that change the output, as parts of result file names."""
        return [f"beam-size-{self.beam_size}", *super().file_name_parts(), *self.scorer_name_parts()]
