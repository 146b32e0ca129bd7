"""Hypotheses as tensors: state and results of greedy search and modified beam search."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.searches.base import Hypothesis, Search, SearchState, TransducerHead
from icefall_pathways.searches.token_scorer import TokenScorer


@dataclass(frozen=True)
class BeamState(SearchState):
    """Hypotheses of N streams; the first axis of every tensor is the stream.

    Attributes:
      tokens: (N, beam, L) the start context, followed by the tokens; entries from `num_tokens` on are padding.
      timestamps: (N, beam, L) the encoder frame of each token.
      token_log_probs: (N, beam, L) the log-probability of each token in that frame.
      num_tokens: (N, beam) number of valid entries of `tokens`, including the start context.
      hashes: (N, beam) hashes of the token sequences; equal for equal sequences.
      log_probs: (N, beam) log-probabilities of the transducer; -inf for empty slots of the beam.
      bonus: (N, beam) total scores of the token scorers.
      scorer_states: (N, beam, S) current state of each of the S token scorers.
      predictor_out: (N, beam, joiner_dim) projected predictor output of the last tokens.
      num_frames: (N,) number of encoder frames processed.
    """

    tokens: Tensor
    timestamps: Tensor
    token_log_probs: Tensor
    num_tokens: Tensor
    hashes: Tensor
    log_probs: Tensor
    bonus: Tensor
    scorer_states: Tensor
    predictor_out: Tensor
    num_frames: Tensor

    def split(self) -> list["BeamState"]:
        """Return one state per stream, so that each stream can leave the batch."""
        parts = [tensor.split(1) for tensor in _tensors(self)]
        return [BeamState(*tensors) for tensors in zip(*parts, strict=True)]

    def padded(self, length: int) -> "BeamState":
        """Return the same hypotheses padded to `length` tokens, including the start context."""
        pad = (0, length - self.tokens.size(2))
        return dataclasses.replace(
            self,
            tokens=F.pad(self.tokens, pad),
            timestamps=F.pad(self.timestamps, pad),
            token_log_probs=F.pad(self.token_log_probs, pad),
        )

    def _join(self, states: Sequence["BeamState"]) -> "BeamState":
        length = max(state.tokens.size(2) for state in states)
        states = [state.padded(length) for state in states]
        return BeamState(*(torch.cat(tensors) for tensors in zip(*map(_tensors, states), strict=True)))

    def reordered(self, order: Tensor) -> "BeamState":
        """Return the state with the token history of the hypotheses `order` (N, beam); other tensors do not change."""
        return dataclasses.replace(
            self,
            tokens=take(self.tokens, order),
            timestamps=take(self.timestamps, order),
            token_log_probs=take(self.token_log_probs, order),
            num_tokens=take(self.num_tokens, order),
        )

    def extended(self, tokens: Tensor, log_probs: Tensor, lens: Tensor, blank_id: int) -> "BeamState":
        """Return the state with newly emitted tokens appended to the token history.

        Args:
          tokens: (N, beam, T) the token emitted in each of the next T frames, or blank.
          log_probs: (N, beam, T) log-probabilities of the tokens.
          lens: (N,) number of frames processed in each stream.
          blank_id: ID of the blank.
        """
        emits = tokens.ne(blank_id)
        num_tokens = self.num_tokens + emits.sum(dim=2)
        length = int(num_tokens.max())
        # Blanks are written to an extra last column, which is dropped.
        column = (self.num_tokens[..., None] + emits.cumsum(dim=2) - 1).masked_fill(~emits, length)
        frame = self.num_frames[:, None, None] + torch.arange(tokens.size(2), device=tokens.device)
        padded = self.padded(length + 1)
        return dataclasses.replace(
            self,
            tokens=padded.tokens.scatter(2, column, tokens)[..., :length],
            timestamps=padded.timestamps.scatter(2, column, frame.expand_as(column))[..., :length],
            token_log_probs=padded.token_log_probs.scatter(2, column, log_probs)[..., :length],
            num_tokens=num_tokens,
            num_frames=self.num_frames + lens,
        )


class FrameSearch(Search[BeamState]):
    """Base class of greedy search and modified beam search.

    Args:
      model: A transducer; only its predictor and joiner are used.
      beam_size: Number of hypotheses kept per stream.
      blank_penalty: Subtracted from the logit of the blank; larger values give fewer deletions.
      scorers: Hotwords and language models, whose scores are added to those of the tokens.

    Raises:
      ValueError: The beam is empty, or a scorer has another vocabulary than the model.
    """

    def __init__(
        self,
        model: TransducerHead,
        beam_size: int,
        blank_penalty: float = 0.0,
        scorers: Sequence[TokenScorer] = (),
    ) -> None:
        super().__init__(model, blank_penalty)
        if beam_size < 1:
            raise ValueError(f"a beam of {beam_size} hypotheses: expected at least 1")
        for scorer in scorers:
            if scorer.vocab_size != self.vocab_size:
                raise ValueError(
                    f"hotwords or a language model over {scorer.vocab_size} tokens: the model has {self.vocab_size}"
                )
        self.beam_size = beam_size
        self.scorers = [scorer.to(self.device) for scorer in scorers]

    @torch.inference_mode()
    def init(self, batch_size: int) -> BeamState:
        """Return the initial state of `batch_size` streams: one empty hypothesis each."""
        device, shape = self.device, (batch_size, self.beam_size)
        context = torch.tensor([-1] * (self.context_size - 1) + [self.blank_id], device=device)
        tokens = context.expand(*shape, -1).contiguous()
        log_probs = torch.full(shape, -torch.inf, device=device)
        log_probs[:, 0] = 0.0
        starts = torch.tensor([scorer.start for scorer in self.scorers], dtype=torch.int64, device=device)
        return BeamState(
            tokens=tokens,
            timestamps=torch.zeros_like(tokens),
            token_log_probs=torch.zeros(tokens.shape, device=device),
            num_tokens=torch.full(shape, self.context_size, device=device),
            hashes=torch.zeros(shape, dtype=torch.int64, device=device),
            log_probs=log_probs,
            bonus=torch.zeros(shape, device=device),
            scorer_states=starts.expand(*shape, -1).contiguous(),
            predictor_out=self._predict(context[None]).expand(*shape, -1).contiguous(),
            num_frames=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def results(self, state: BeamState) -> list[Hypothesis]:
        """Return the hypothesis of each stream with the best score per token, counting the start context too."""
        best = self._scores_per_token(state).argmax(dim=1, keepdim=True)
        return [hypotheses[0] for hypotheses in self._hypotheses(state, best)]

    def n_best(self, state: BeamState) -> list[list[Hypothesis]]:
        """Return all hypotheses of each stream, ranked as in `results`, with distinct token sequences."""
        return self._hypotheses(state, self._scores_per_token(state).argsort(dim=1, descending=True, stable=True))

    def stable_lengths(self, state: BeamState) -> list[int]:
        """Return the length of the common prefix of each stream's hypotheses, which all later hypotheses extend."""
        alive = state.log_probs.gt(-torch.inf)
        best = take(state.tokens, self._scores_per_token(state).argmax(dim=1, keepdim=True))
        column = torch.arange(state.tokens.size(2), device=state.tokens.device)
        same = state.tokens.eq(best) & column.lt(state.num_tokens[..., None])
        common = (same | ~alive[..., None]).all(dim=1)
        lengths: list[int] = (common.cumprod(dim=1).sum(dim=1) - self.context_size).tolist()
        return lengths

    @torch.inference_mode()
    def reset_hypothesis(self, state: BeamState) -> BeamState:
        """Return a state with one empty hypothesis per stream, and the predictor context of the best hypothesis.

        The scorers return to their start states.
        """
        initial = self.init(len(state.num_frames))
        best = self._scores_per_token(state).argmax(dim=1, keepdim=True)
        context = take(self._context(state), best).expand_as(initial.tokens).contiguous()
        predictor_out = take(state.predictor_out, best).expand_as(initial.predictor_out).contiguous()
        return dataclasses.replace(initial, tokens=context, predictor_out=predictor_out)

    def _context(self, state: BeamState) -> Tensor:
        """Return the last tokens (N, beam, context_size) of each hypothesis."""
        last = state.num_tokens[..., None] + torch.arange(-self.context_size, 0, device=state.tokens.device)
        return state.tokens.gather(2, last)

    def _final_bonus(self, state: BeamState) -> Tensor:
        """Return the bonus (N, beam) of hypotheses that end here."""
        bonus = state.bonus
        for index, scorer in enumerate(self.scorers):
            bonus = bonus + scorer.final_scores(state.scorer_states[..., index])
        return bonus

    def _scores_per_token(self, state: BeamState) -> Tensor:
        return (state.log_probs + self._final_bonus(state)) / state.num_tokens

    def _hypotheses(self, state: BeamState, order: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses `order` (N, K) of each stream, without the empty slots of the beam."""
        histories = (state.tokens, state.timestamps, state.token_log_probs)
        tensors = (*histories, state.num_tokens, state.log_probs, self._final_bonus(state))
        start = self.context_size
        return [
            [
                Hypothesis(tokens[start:end], times[start:end], log_prob, bonus, token_log_probs[start:end])
                for tokens, times, token_log_probs, end, log_prob, bonus in zip(*stream, strict=True)
                if log_prob > -torch.inf
            ]
            for stream in zip(*(take(tensor, order).tolist() for tensor in tensors), strict=True)
        ]


def _tensors(state: BeamState) -> list[Tensor]:
    return [getattr(state, field.name) for field in dataclasses.fields(state)]


def flat_index(order: Tensor, beam_size: int) -> Tensor:
    """Convert hypothesis indices `order` (N, K) of each stream to row indices (N * K,) into (N * beam_size, ...)."""
    first = torch.arange(0, order.size(0) * beam_size, beam_size, device=order.device)
    return (first[:, None] + order).flatten()


def take(values: Tensor, order: Tensor) -> Tensor:
    """Select from (N, beam, ...) the hypotheses `order` (N, K) of each stream: (N, K, ...)."""
    rows = flat_index(order, values.size(1))
    return values.flatten(0, 1).index_select(0, rows).view(*order.shape, *values.shape[2:])
