"""What greedy and modified beam search share: the hypotheses as tensors, and what becomes of them in the end."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.searches.automaton import FailureAutomaton
from icefall_pathways.searches.base import Hypothesis, Search, SearchState, TransducerHead


@dataclass(frozen=True)
class BeamState(SearchState):
    """The hypotheses of N streams; the first axis of every tensor is the stream.

    Attributes:
      tokens: (N, beam, L) the start context, then the tokens; what lies beyond `num_tokens` means nothing.
      timestamps: (N, beam, L) the encoder frame of each token.
      num_tokens: (N, beam) entries of `tokens` in use, the start context included.
      hashes: (N, beam) equal for equal token sequences.
      log_probs: (N, beam) by the transducer; -inf where a place of the beam is empty.
      bonus: (N, beam) what the automata have added.
      automaton_states: (N, beam, A) where each of the A automata is.
      predictor_out: (N, beam, joiner_dim) the projected predictor output for the last tokens.
      num_frames: (N,) encoder frames read so far.
    """

    tokens: Tensor
    timestamps: Tensor
    num_tokens: Tensor
    hashes: Tensor
    log_probs: Tensor
    bonus: Tensor
    automaton_states: Tensor
    predictor_out: Tensor
    num_frames: Tensor

    def split(self) -> list["BeamState"]:
        """Give every stream a state of its own, so that it can leave the batch."""
        parts = [value.split(1) for value in _values(self)]
        return [BeamState(*values) for values in zip(*parts, strict=True)]

    def resized(self, length: int) -> "BeamState":
        """The same hypotheses with room for `length` tokens each, the start context included."""
        pad = (0, length - self.tokens.size(2))
        return dataclasses.replace(self, tokens=F.pad(self.tokens, pad), timestamps=F.pad(self.timestamps, pad))

    def _join(self, states: Sequence["BeamState"]) -> "BeamState":
        length = max(state.tokens.size(2) for state in states)
        states = [state.resized(length) for state in states]
        return BeamState(*(torch.cat(values) for values in zip(*map(_values, states), strict=True)))

    def reordered(self, order: Tensor) -> "BeamState":
        """With the history of hypotheses `order` (N, beam) of each stream; what the searches keep at hand stays."""
        return dataclasses.replace(
            self,
            tokens=take(self.tokens, order),
            timestamps=take(self.timestamps, order),
            num_tokens=take(self.num_tokens, order),
        )

    def prolonged(self, tokens: Tensor, lens: Tensor, blank_id: int) -> "BeamState":
        """With what the hypotheses emitted in the next frames, (N, beam, T) with blanks, written into their history.

        Of each stream `lens` (N,) frames were read.
        """
        emits = tokens.ne(blank_id)
        num_tokens = self.num_tokens + emits.sum(dim=2)
        length = int(num_tokens.max())
        # What was not emitted is written to a place too many, which is then cut off.
        place = (self.num_tokens[..., None] + emits.cumsum(dim=2) - 1).masked_fill(~emits, length)
        now = self.num_frames[:, None, None] + torch.arange(tokens.size(2), device=tokens.device)
        room = self.resized(length + 1)
        return dataclasses.replace(
            self,
            tokens=room.tokens.scatter(2, place, tokens)[..., :length],
            timestamps=room.timestamps.scatter(2, place, now.expand_as(place))[..., :length],
            num_tokens=num_tokens,
            num_frames=self.num_frames + lens,
        )


class FrameSearch(Search[BeamState]):
    """What greedy and beam search share: states and results.

    Args:
      model: A transducer; its predictor and joiner are used.
      beam_size: Hypotheses kept per stream.
      blank_penalty: Subtracted from the blank's logit: the larger, the fewer deletions.
      automata: What is added to the scores of tokens: hotwords, a language model.
    """

    def __init__(
        self,
        model: TransducerHead,
        beam_size: int,
        blank_penalty: float = 0.0,
        automata: Sequence[FailureAutomaton] = (),
    ) -> None:
        super().__init__(model, blank_penalty)
        if beam_size < 1:
            raise ValueError(f"a beam of {beam_size} hypotheses: expected at least 1")
        for automaton in automata:
            if automaton.vocab_size != self.vocab_size:
                raise ValueError(
                    f"hotwords or a language model over {automaton.vocab_size} tokens: the model has {self.vocab_size}"
                )
        self.beam_size = beam_size
        self.automata = [automaton.to(self.device) for automaton in automata]

    @torch.inference_mode()
    def init(self, batch_size: int) -> BeamState:
        """The state of streams that have not begun: one empty hypothesis each."""
        device, shape = self.device, (batch_size, self.beam_size)
        context = torch.tensor([-1] * (self.context_size - 1) + [self.blank_id], device=device)
        tokens = context.expand(*shape, -1).contiguous()
        log_probs = torch.full(shape, -torch.inf, device=device)
        log_probs[:, 0] = 0.0
        starts = torch.tensor([automaton.start for automaton in self.automata], dtype=torch.int64, device=device)
        return BeamState(
            tokens=tokens,
            timestamps=torch.zeros_like(tokens),
            num_tokens=torch.full(shape, self.context_size, device=device),
            hashes=torch.zeros(shape, dtype=torch.int64, device=device),
            log_probs=log_probs,
            bonus=torch.zeros(shape, device=device),
            automaton_states=starts.expand(*shape, -1).contiguous(),
            predictor_out=self._predict(context[None]).expand(*shape, -1).contiguous(),
            num_frames=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    def results(self, state: BeamState) -> list[Hypothesis]:
        """The hypothesis of each stream with the best score per token (start context counted)."""
        best = self._ranks(state).argmax(dim=1, keepdim=True)
        return [hypotheses[0] for hypotheses in self._hypotheses(state, best)]

    def n_best(self, state: BeamState) -> list[list[Hypothesis]]:
        """All hypotheses of each stream, ordered as `results` chooses; they differ in their tokens."""
        return self._hypotheses(state, self._ranks(state).argsort(dim=1, descending=True, stable=True))

    def stable(self, state: BeamState) -> list[int]:
        """How many leading tokens all hypotheses of a stream have in common: every later one grows from these."""
        lives = state.log_probs.gt(-torch.inf)
        best = take(state.tokens, self._ranks(state).argmax(dim=1, keepdim=True))
        place = torch.arange(state.tokens.size(2), device=state.tokens.device)
        same = state.tokens.eq(best) & place.lt(state.num_tokens[..., None])
        common = (same | ~lives[..., None]).all(dim=1)
        counts: list[int] = (common.cumprod(dim=1).sum(dim=1) - self.context_size).tolist()
        return counts

    @torch.inference_mode()
    def reset_hypothesis(self, state: BeamState) -> BeamState:
        """One empty hypothesis per stream that follows the last tokens of the best one; the automata begin anew."""
        fresh = self.init(len(state.num_frames))
        best = self._ranks(state).argmax(dim=1, keepdim=True)
        context = take(self._context(state), best).expand_as(fresh.tokens).contiguous()
        predictor_out = take(state.predictor_out, best).expand_as(fresh.predictor_out).contiguous()
        return dataclasses.replace(fresh, tokens=context, predictor_out=predictor_out)

    def _context(self, state: BeamState) -> Tensor:
        """The last tokens (N, beam, context_size) of each hypothesis."""
        last = state.num_tokens[..., None] + torch.arange(-self.context_size, 0, device=state.tokens.device)
        return state.tokens.gather(2, last)

    def _final_bonus(self, state: BeamState) -> Tensor:
        """The bonus (N, beam) if the streams end here."""
        bonus = state.bonus
        for number, automaton in enumerate(self.automata):
            bonus = bonus + automaton.final(state.automaton_states[..., number])
        return bonus

    def _ranks(self, state: BeamState) -> Tensor:
        return (state.log_probs + self._final_bonus(state)) / state.num_tokens

    def _hypotheses(self, state: BeamState, order: Tensor) -> list[list[Hypothesis]]:
        """The hypotheses `order` (N, K) of each stream as lists; empty places of the beam are left out."""
        values = (state.tokens, state.timestamps, state.num_tokens, state.log_probs, self._final_bonus(state))
        begin = self.context_size
        return [
            [
                Hypothesis(tokens[begin:end], times[begin:end], log_prob, bonus)
                for tokens, times, end, log_prob, bonus in zip(*stream, strict=True)
                if log_prob > -torch.inf
            ]
            for stream in zip(*(take(value, order).tolist() for value in values), strict=True)
        ]


def _values(state: BeamState) -> list[Tensor]:
    return [getattr(state, field.name) for field in dataclasses.fields(state)]


def line_up(order: Tensor, beam_size: int) -> Tensor:
    """Where hypotheses `order` (N, K) of each stream are if those of all streams are in one line."""
    first = torch.arange(0, order.size(0) * beam_size, beam_size, device=order.device)
    return (first[:, None] + order).flatten()


def take(value: Tensor, order: Tensor) -> Tensor:
    """Of (N, beam, ...) the hypotheses `order` (N, K) of each stream."""
    rows = line_up(order, value.size(1))
    return value.flatten(0, 1).index_select(0, rows).view(*order.shape, *value.shape[2:])
