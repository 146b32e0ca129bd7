"""Modified beam search: one step per frame for all hypotheses of all streams together."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icefall_pathways.searches.automaton import FailureAutomaton
from icefall_pathways.searches.base import TransducerHead
from icefall_pathways.searches.frame_search import BeamState, FrameSearch, line_up

# An odd multiplier without structure: token sequences that differ have, for all practical purposes, different hashes.
_HASH_MULTIPLIER = -7046029254386353131


@dataclass(frozen=True)
class _Front:
    """Of a `BeamState`, what changes with every frame; the history of tokens is written once per call of `advance`.

    Attributes:
      memory: (N, beam, 2 + context_size) what follows a hypothesis when the beam is sorted anew, all in one: its hash,
        its number of tokens, its last tokens.
      log_probs, bonus, automaton_states, predictor_out: As in `BeamState`.
    """

    memory: Tensor
    log_probs: Tensor
    bonus: Tensor
    automaton_states: Tensor
    predictor_out: Tensor


@dataclass(frozen=True)
class _Choice:
    """What survives a frame.

    Attributes:
      parents: (N, beam) the hypothesis that is prolonged.
      tokens: (N, beam) what it is prolonged by; a blank leaves it alone.
      log_probs: (N, beam) with that token.
      bonus: (N, beam) with that token.
      automaton_states: (N, beam, A) after that token.
    """

    parents: Tensor
    tokens: Tensor
    log_probs: Tensor
    bonus: Tensor
    automaton_states: Tensor


class ModifiedBeamSearch(FrameSearch):
    """Beam search with at most one token per frame, in which hypotheses with the same tokens are merged.

    Args:
      model: A transducer; its predictor and joiner are used.
      beam_size: Hypotheses kept per stream.
      blank_penalty: Subtracted from the blank's logit: the larger, the fewer deletions.
      automata: What is added to the scores of tokens before the best are chosen: hotwords, a language model (shallow
        fusion). The blank has no such score.
    """

    def __init__(
        self,
        model: TransducerHead,
        beam_size: int = 4,
        blank_penalty: float = 0.0,
        automata: Sequence[FailureAutomaton] = (),
    ) -> None:
        super().__init__(model, beam_size, blank_penalty, automata)

    @torch.inference_mode()
    def advance(self, state: BeamState, encoder_out: Tensor, lens: Tensor) -> BeamState:
        """Read the next frames of every stream.

        Args:
          state: Of N streams; it is left as it is.
          encoder_out: (N, T, D) the next encoder outputs.
          lens: (N,) how many of them belong to each stream; frames beyond change nothing.
        """
        num_frames = int(lens.max())
        if num_frames == 0:
            return state
        lens = lens.to(encoder_out.device)
        frames = self.model.joiner.encoder_proj(encoder_out)
        everywhere = int(lens.min())
        front = self._front(state)
        choices = []
        for t in range(num_frames):
            choice = self._choose(front, self._logits(frames[:, t : t + 1], front.predictor_out))
            if t >= everywhere:
                choice = self._stand_still(front, choice, lens.gt(t)[:, None])
            front = self._merge(self._follow(front, choice))
            choices.append(choice)
        tokens, ancestors = _trace_back(choices)
        return dataclasses.replace(
            state.reordered(ancestors).prolonged(tokens, lens, self.blank_id),
            hashes=front.memory[..., 0],
            log_probs=front.log_probs,
            bonus=front.bonus,
            automaton_states=front.automaton_states,
            predictor_out=front.predictor_out,
        )

    def _front(self, state: BeamState) -> _Front:
        counts = torch.stack([state.hashes, state.num_tokens], dim=2)
        return _Front(
            memory=torch.cat([counts, self._context(state)], dim=2),
            log_probs=state.log_probs,
            bonus=state.bonus,
            automaton_states=state.automaton_states,
            predictor_out=state.predictor_out,
        )

    def _choose(self, front: _Front, logits: Tensor) -> _Choice:
        scores = (logits.log_softmax(dim=-1) + front.log_probs[..., None]).flatten(1)
        if self.automata:
            return self._choose_with_bonus(front, scores)
        log_probs, best = scores.topk(self.beam_size, dim=1)
        parents = best.div(self.vocab_size, rounding_mode="floor")
        tokens = best - parents * self.vocab_size
        return _Choice(parents, tokens, log_probs, front.bonus, front.automaton_states)

    def _choose_with_bonus(self, front: _Front, scores: Tensor) -> _Choice:
        """As `_choose`, by the log-probabilities `scores` (N, beam * V) and the automata's together."""
        bonus = front.bonus[..., None].expand(*front.bonus.shape, self.vocab_size)
        targets = []
        for number, automaton in enumerate(self.automata):
            states = front.automaton_states[..., number]
            added, reached = automaton.follow(states.flatten())
            added[:, self.blank_id] = 0.0
            reached[:, self.blank_id] = states.flatten()
            bonus = bonus + added.view_as(bonus)
            targets.append(reached.view_as(bonus).flatten(1))
        bonus = bonus.flatten(1)
        _, best = (scores + bonus).topk(self.beam_size, dim=1)
        parents = best.div(self.vocab_size, rounding_mode="floor")
        return _Choice(
            parents,
            tokens=best - parents * self.vocab_size,
            log_probs=scores.gather(1, best),
            bonus=bonus.gather(1, best),
            automaton_states=torch.stack([reached.gather(1, best) for reached in targets], dim=2),
        )

    def _stand_still(self, front: _Front, choice: _Choice, reads: Tensor) -> _Choice:
        """The same choice where `reads` (N, 1), and elsewhere that of leaving everything as it is."""
        own = torch.arange(self.beam_size, device=reads.device)
        return _Choice(
            parents=torch.where(reads, choice.parents, own),
            tokens=choice.tokens.masked_fill(~reads, self.blank_id),
            log_probs=torch.where(reads, choice.log_probs, front.log_probs),
            bonus=torch.where(reads, choice.bonus, front.bonus),
            automaton_states=torch.where(reads[..., None], choice.automaton_states, front.automaton_states),
        )

    def _follow(self, front: _Front, choice: _Choice) -> _Front:
        """The hypotheses after the frame."""
        memory, predictor_out, tokens = front.memory, front.predictor_out, choice.tokens
        rows = line_up(choice.parents, self.beam_size)
        memory = memory.flatten(0, 1).index_select(0, rows).view_as(memory)
        predictor_out = predictor_out.flatten(0, 1).index_select(0, rows).view_as(predictor_out)
        emits = tokens.ne(self.blank_id)
        where = emits.nonzero(as_tuple=True)
        if where[0].numel() > 0:
            token = tokens[..., None]
            hashes = (memory[..., :1] + token + 1) * _HASH_MULTIPLIER
            longer = torch.cat([hashes, memory[..., 1:2] + 1, memory[..., 3:], token], dim=2)
            memory = torch.where(emits[..., None], longer, memory)
            predictor_out = predictor_out.index_put(where, self._predict(longer[where][:, 2:]))
        return _Front(memory, choice.log_probs, choice.bonus, choice.automaton_states, predictor_out)

    def _merge(self, front: _Front) -> _Front:
        """Make hypotheses with the same tokens one."""
        counts, log_probs = front.memory[..., :2], front.log_probs
        same = (counts[:, :, None] == counts[:, None]).all(dim=3)
        # log-sum-exp over those with the same tokens, each of which is itself less its log-softmax: that is one kernel.
        shares = log_probs[:, None].masked_fill(~same, -torch.inf).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
        # What is empty repeats a hypothesis too: at first all are the empty one, and -inf is only ever chosen where
        # everything above it is chosen, its living double among that.
        repeats = same.tril(diagonal=-1).any(dim=2)
        return dataclasses.replace(front, log_probs=(log_probs - shares).masked_fill(repeats, -torch.inf))


def _trace_back(choices: list[_Choice]) -> tuple[Tensor, Tensor]:
    """The tokens (N, beam, T) of the last hypotheses, and (N, beam) the hypotheses before all from which they grew."""
    tokens, ancestors = [choices[-1].tokens], choices[-1].parents
    for choice in reversed(choices[:-1]):
        tokens.append(choice.tokens.gather(1, ancestors))
        ancestors = choice.parents.gather(1, ancestors)
    return torch.stack(tokens[::-1], dim=2), ancestors
