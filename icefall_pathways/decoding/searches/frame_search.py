"""Greedy and modified beam search: one step per frame for all hypotheses of all streams together."""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.decoding.searches.automaton import FailureAutomaton
from icefall_pathways.decoding.searches.base import Hypothesis, Search, SearchState, TransducerHead

# An odd multiplier without structure: token sequences that differ have, for all practical purposes, different hashes.
_HASH_MULTIPLIER = -7046029254386353131


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
      parents: (N, beam) the hypothesis that is prolonged; None: each by itself.
      tokens: (N, beam) what it is prolonged by; a blank leaves it alone.
      log_probs: (N, beam) with that token.
      bonus: (N, beam) with that token.
      automaton_states: (N, beam, A) after that token.
    """

    parents: Tensor | None
    tokens: Tensor
    log_probs: Tensor
    bonus: Tensor
    automaton_states: Tensor


class FrameSearch(Search[BeamState]):
    """What greedy and beam search share: states, the loop over frames, and the predictor.

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
            front = self._follow(front, choice)
            choices.append(choice)
        return self._record(state, front, choices, lens)

    def results(self, state: BeamState) -> list[Hypothesis]:
        """The hypothesis of each stream with the best score per token (start context counted)."""
        best = self._ranks(state).argmax(dim=1, keepdim=True)
        return [hypotheses[0] for hypotheses in self._hypotheses(state, best)]

    def n_best(self, state: BeamState) -> list[list[Hypothesis]]:
        """All hypotheses of each stream, ordered as `results` chooses; they differ in their tokens."""
        return self._hypotheses(state, self._ranks(state).argsort(dim=1, descending=True, stable=True))

    @abstractmethod
    def _choose(self, front: _Front, logits: Tensor) -> _Choice:
        """Choose what survives a frame by its logits (N, beam, V)."""

    def _merge(self, front: _Front) -> _Front:
        """Make hypotheses with the same tokens one."""
        return front

    def _front(self, state: BeamState) -> _Front:
        last = state.num_tokens[..., None] + torch.arange(-self.context_size, 0, device=state.tokens.device)
        counts = torch.stack([state.hashes, state.num_tokens], dim=2)
        return _Front(
            memory=torch.cat([counts, state.tokens.gather(2, last)], dim=2),
            log_probs=state.log_probs,
            bonus=state.bonus,
            automaton_states=state.automaton_states,
            predictor_out=state.predictor_out,
        )

    def _follow(self, front: _Front, choice: _Choice) -> _Front:
        """The hypotheses after the frame."""
        memory, predictor_out, tokens = front.memory, front.predictor_out, choice.tokens
        if choice.parents is not None:
            rows = _rows(choice.parents, self.beam_size)
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
        front = _Front(memory, choice.log_probs, choice.bonus, choice.automaton_states, predictor_out)
        return self._merge(front)

    def _stand_still(self, front: _Front, choice: _Choice, reads: Tensor) -> _Choice:
        """The same choice where `reads` (N, 1), and elsewhere that of leaving everything as it is."""
        own = torch.arange(self.beam_size, device=reads.device)
        return _Choice(
            parents=None if choice.parents is None else torch.where(reads, choice.parents, own),
            tokens=choice.tokens.masked_fill(~reads, self.blank_id),
            log_probs=torch.where(reads, choice.log_probs, front.log_probs),
            bonus=torch.where(reads, choice.bonus, front.bonus),
            automaton_states=torch.where(reads[..., None], choice.automaton_states, front.automaton_states),
        )

    def _record(self, state: BeamState, front: _Front, choices: list[_Choice], lens: Tensor) -> BeamState:
        """Write down the tokens of the frames just read: from the last choice back to the first, then in one piece."""
        at: Tensor | None = None  # None: every hypothesis is its own ancestor
        steps = []
        for choice in reversed(choices):
            steps.append(choice.tokens if at is None else choice.tokens.gather(1, at))
            if choice.parents is not None:
                at = choice.parents if at is None else choice.parents.gather(1, at)
        tokens = torch.stack(steps[::-1], dim=2)
        old = [state.tokens, state.timestamps, state.num_tokens]
        history, timestamps, end = old if at is None else [_take(value, at) for value in old]
        emits = tokens.ne(self.blank_id)
        hashes, num_tokens = front.memory[..., 0], front.memory[..., 1]
        length = int(num_tokens.max())
        # What was not emitted is written to a place too many, which is then cut off.
        place = (end[..., None] + emits.cumsum(dim=2) - 1).masked_fill(~emits, length)
        now = state.num_frames[:, None, None] + torch.arange(tokens.size(2), device=tokens.device)
        room = (0, length + 1 - history.size(2))
        return BeamState(
            tokens=F.pad(history, room).scatter(2, place, tokens)[..., :length],
            timestamps=F.pad(timestamps, room).scatter(2, place, now.expand_as(place))[..., :length],
            num_tokens=num_tokens,
            hashes=hashes,
            log_probs=front.log_probs,
            bonus=front.bonus,
            automaton_states=front.automaton_states,
            predictor_out=front.predictor_out,
            num_frames=state.num_frames + lens,
        )

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
            for stream in zip(*(_take(value, order).tolist() for value in values), strict=True)
        ]


class GreedySearch(FrameSearch):
    """The most probable token of each frame."""

    def __init__(self, model: TransducerHead, blank_penalty: float = 0.0) -> None:
        super().__init__(model, beam_size=1, blank_penalty=blank_penalty)

    def _choose(self, front: _Front, logits: Tensor) -> _Choice:
        best, tokens = logits.log_softmax(dim=-1).max(dim=-1)
        return _Choice(None, tokens, front.log_probs + best, front.bonus, front.automaton_states)


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

    def _merge(self, front: _Front) -> _Front:
        counts, log_probs = front.memory[..., :2], front.log_probs
        same = (counts[:, :, None] == counts[:, None]).all(dim=3)
        # log-sum-exp over those with the same tokens, each of which is itself less its log-softmax: that is one kernel.
        shares = log_probs[:, None].masked_fill(~same, -torch.inf).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
        # What is empty repeats a hypothesis too: at first all are the empty one, and -inf is only ever chosen where
        # everything above it is chosen, its living double among that.
        repeats = same.tril(diagonal=-1).any(dim=2)
        return dataclasses.replace(front, log_probs=(log_probs - shares).masked_fill(repeats, -torch.inf))


def _values(state: BeamState) -> list[Tensor]:
    return [getattr(state, field.name) for field in dataclasses.fields(state)]


def _rows(order: Tensor, beam_size: int) -> Tensor:
    """Where hypotheses `order` (N, K) of each stream are if those of all streams are in one line."""
    first = torch.arange(0, order.size(0) * beam_size, beam_size, device=order.device)
    return (first[:, None] + order).flatten()


def _take(value: Tensor, order: Tensor) -> Tensor:
    """Of (N, beam, ...) the hypotheses `order` (N, K) of each stream."""
    rows = _rows(order, value.size(1))
    return value.flatten(0, 1).index_select(0, rows).view(*order.shape, *value.shape[2:])
