"""Greedy and modified beam search, one implementation each for whole utterances and for streams.

Both carry a `SearchState` from one call of `advance` to the next, so decoding a whole utterance is one call and
decoding a stream is one call per chunk; the result is the same however the frames are cut. Every stream emits at most
one token per frame. Streams and hypotheses are axes of tensors: the only loop is the one over frames.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# An odd multiplier without structure: token sequences that differ have, for all practical purposes, different hashes.
_HASH_MULTIPLIER = -7046029254386353131


class TransducerHead(Protocol):
    """What a search needs of a transducer: the predictor, called `decoder` as in icefall, and the joiner."""

    decoder: Any
    joiner: Any


@dataclass(frozen=True)
class Hypothesis:
    """What a search found for one stream.

    Attributes:
      tokens: Token ids without blanks.
      timestamps: The encoder frame at which each token was emitted, counted from the start of the stream.
      log_prob: Natural logarithm of the probability of all paths merged into this hypothesis.
    """

    tokens: list[int]
    timestamps: list[int]
    log_prob: float


@dataclass(frozen=True)
class SearchState:
    """The hypotheses of N streams; the first axis of every tensor is the stream.

    Attributes:
      tokens: (N, beam, L) the start context, then the tokens; what lies beyond `num_tokens` means nothing.
      timestamps: (N, beam, L) the encoder frame of each token.
      num_tokens: (N, beam) entries of `tokens` in use, the start context included.
      hashes: (N, beam) equal for equal token sequences.
      log_probs: (N, beam) -inf where a place of the beam is empty.
      predictor_out: (N, beam, joiner_dim) the projected predictor output for the last tokens.
      num_frames: (N,) encoder frames read so far.
    """

    tokens: Tensor
    timestamps: Tensor
    num_tokens: Tensor
    hashes: Tensor
    log_probs: Tensor
    predictor_out: Tensor
    num_frames: Tensor

    def split(self) -> list["SearchState"]:
        """Give every stream a state of its own, so that it can leave the batch."""
        parts = [value.split(1) for value in _values(self)]
        return [SearchState(*values) for values in zip(*parts, strict=True)]

    @staticmethod
    def join(states: Sequence["SearchState"]) -> "SearchState":
        """Make one batch of streams of any age, in the given order; the inverse of `split`."""
        length = max(state.tokens.size(2) for state in states)
        states = [state.resized(length) for state in states]
        return SearchState(*(torch.cat(values) for values in zip(*map(_values, states), strict=True)))

    def resized(self, length: int) -> "SearchState":
        """The same hypotheses with room for `length` tokens each, the start context included."""
        pad = (0, length - self.tokens.size(2))
        return dataclasses.replace(self, tokens=F.pad(self.tokens, pad), timestamps=F.pad(self.timestamps, pad))


class Search(ABC):
    """What greedy and beam search share: states, the frame loop, and the predictor.

    Args:
      model: A transducer; its predictor and joiner are used.
      beam_size: Hypotheses kept per stream.
      blank_penalty: Subtracted from the blank's logit: the larger, the fewer deletions.
    """

    def __init__(self, model: TransducerHead, beam_size: int, blank_penalty: float = 0.0) -> None:
        if beam_size < 1:
            raise ValueError(f"a beam of {beam_size} hypotheses: expected at least 1")
        self.model = model
        self.beam_size = beam_size
        self.blank_penalty = blank_penalty
        self.blank_id: int = model.decoder.blank_id
        self.context_size: int = model.decoder.context_size

    @torch.inference_mode()
    def init(self, batch_size: int) -> SearchState:
        """The state of streams that have not begun: one empty hypothesis each."""
        device = self.model.joiner.encoder_proj.weight.device
        shape = (batch_size, self.beam_size)
        context = torch.tensor([-1] * (self.context_size - 1) + [self.blank_id], device=device)
        tokens = context.expand(*shape, -1).contiguous()
        log_probs = torch.full(shape, -torch.inf, device=device)
        log_probs[:, 0] = 0.0
        return SearchState(
            tokens=tokens,
            timestamps=torch.zeros_like(tokens),
            num_tokens=torch.full(shape, self.context_size, device=device),
            hashes=torch.zeros(shape, dtype=torch.int64, device=device),
            log_probs=log_probs,
            predictor_out=self._predict(context[None]).expand(*shape, -1).contiguous(),
            num_frames=torch.zeros(batch_size, dtype=torch.int64, device=device),
        )

    @torch.inference_mode()
    def advance(self, state: SearchState, encoder_out: Tensor, lens: Tensor) -> SearchState:
        """Read the next frames of every stream.

        Args:
          state: Of N streams; it is left as it is.
          encoder_out: (N, T, D) the next encoder outputs.
          lens: (N,) how many of them belong to each stream; frames beyond change nothing.
        """
        if encoder_out.size(1) == 0:
            return state
        lens = lens.to(encoder_out.device)
        frames = self.model.joiner.encoder_proj(encoder_out)
        everywhere = int(lens.min())
        state = state.resized(int(state.num_tokens.max()) + frames.size(1))
        for t in range(int(lens.max())):
            reads = None if t < everywhere else lens.gt(t)
            state = self._advance_frame(state, frames[:, t : t + 1], reads)
        return state

    def results(self, state: SearchState) -> list[Hypothesis]:
        """The hypothesis of each stream with the largest log-probability per token (start context counted)."""
        best = (state.log_probs / state.num_tokens).argmax(dim=1, keepdim=True)
        return [hypotheses[0] for hypotheses in self._hypotheses(state, best)]

    def n_best(self, state: SearchState) -> list[list[Hypothesis]]:
        """All hypotheses of each stream, ordered as `results` chooses; they differ in their tokens."""
        order = (state.log_probs / state.num_tokens).argsort(dim=1, descending=True)
        return self._hypotheses(state, order)

    @abstractmethod
    def _select(self, logits: Tensor, log_probs: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Choose what survives a frame.

        Args:
          logits: (N, beam, V) for each hypothesis, the blank penalty applied.
          log_probs: (N, beam) of the hypotheses.

        Returns:
          (N, beam) each: the hypothesis that is prolonged (None: each by itself), its token, the new log-probability.
        """

    def _merge(self, state: SearchState) -> SearchState:
        """Make hypotheses with the same tokens one."""
        return state

    def _advance_frame(self, state: SearchState, frame: Tensor, reads: Tensor | None) -> SearchState:
        """Read one frame (N, 1, joiner_dim); `reads` (N,) tells the streams that have it, None means all."""
        logits = self.model.joiner(frame, state.predictor_out, project_input=False).float()
        if self.blank_penalty:
            logits[..., self.blank_id] -= self.blank_penalty
        parents, tokens, log_probs = self._select(logits, state.log_probs)
        if reads is not None:
            reads = reads[:, None]
            own = torch.arange(self.beam_size, device=reads.device)
            parents = None if parents is None else torch.where(reads, parents, own)
            tokens = tokens.masked_fill(~reads, self.blank_id)
            log_probs = torch.where(reads, log_probs, state.log_probs)
        state = dataclasses.replace(state if parents is None else _reorder(state, parents), log_probs=log_probs)
        state = self._append(state, tokens)
        num_frames = state.num_frames + (torch.ones_like(state.num_frames) if reads is None else reads[:, 0])
        return dataclasses.replace(self._merge(state), num_frames=num_frames)

    def _append(self, state: SearchState, tokens: Tensor) -> SearchState:
        """Prolong every hypothesis by its token (N, beam); a blank leaves it alone."""
        emits = tokens.ne(self.blank_id)
        # Writing a blank too is harmless, since it lies beyond the hypothesis's end.
        end = state.num_tokens[..., None]
        history = state.tokens.scatter(2, end, tokens[..., None])
        now = state.num_frames[:, None, None].expand_as(end)
        num_tokens = torch.add(state.num_tokens, emits)
        predictor_out = state.predictor_out
        where = emits.nonzero(as_tuple=True)
        if where[0].numel() > 0:
            last = torch.arange(-self.context_size, 0, device=tokens.device)
            context = history[where].gather(1, num_tokens[where][:, None] + last)
            predictor_out = predictor_out.index_put(where, self._predict(context))
        return dataclasses.replace(
            state,
            tokens=history,
            timestamps=state.timestamps.scatter(2, end, now),
            num_tokens=num_tokens,
            hashes=torch.where(emits, (state.hashes + tokens + 1) * _HASH_MULTIPLIER, state.hashes),
            predictor_out=predictor_out,
        )

    def _predict(self, context: Tensor) -> Tensor:
        """Projected predictor output (M, joiner_dim) for the last tokens (M, context_size)."""
        return self.model.joiner.decoder_proj(self.model.decoder(context, need_pad=False))[:, 0]

    def _hypotheses(self, state: SearchState, order: Tensor) -> list[list[Hypothesis]]:
        """The hypotheses `order` (N, K) of each stream as lists; empty places of the beam are left out."""
        ordered = _reorder(state, order)
        columns = (ordered.tokens, ordered.timestamps, ordered.num_tokens, ordered.log_probs)
        begin = self.context_size
        return [
            [
                Hypothesis(tokens[begin:end], times[begin:end], log_prob)
                for tokens, times, end, log_prob in zip(*stream, strict=True)
                if log_prob > -torch.inf
            ]
            for stream in zip(*(column.tolist() for column in columns), strict=True)
        ]


class GreedySearch(Search):
    """The most probable token of each frame."""

    def __init__(self, model: TransducerHead, blank_penalty: float = 0.0) -> None:
        super().__init__(model, beam_size=1, blank_penalty=blank_penalty)

    def _select(self, logits: Tensor, log_probs: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        best, tokens = logits.max(dim=-1)
        return None, tokens, log_probs + best - logits.logsumexp(dim=-1)


class ModifiedBeamSearch(Search):
    """Beam search with at most one token per frame, in which hypotheses with the same tokens are merged."""

    def __init__(self, model: TransducerHead, beam_size: int = 4, blank_penalty: float = 0.0) -> None:
        super().__init__(model, beam_size, blank_penalty)

    def _select(self, logits: Tensor, log_probs: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        vocab_size = logits.size(-1)
        scores = logits.log_softmax(dim=-1) + log_probs[..., None]
        log_probs, best = scores.flatten(1).topk(self.beam_size, dim=1)
        parents = best.div(vocab_size, rounding_mode="floor")
        return parents, best - parents * vocab_size, log_probs

    def _merge(self, state: SearchState) -> SearchState:
        hashes, lengths = state.hashes, state.num_tokens
        same = (hashes[:, :, None] == hashes[:, None]) & (lengths[:, :, None] == lengths[:, None])
        together = state.log_probs[:, None].masked_fill(~same, -torch.inf).logsumexp(dim=2)
        repeats = same.tril(diagonal=-1).any(dim=2)
        return dataclasses.replace(state, log_probs=together.masked_fill(repeats, -torch.inf))


def _values(state: SearchState) -> list[Tensor]:
    return [getattr(state, field.name) for field in dataclasses.fields(state)]


def _reorder(state: SearchState, order: Tensor) -> SearchState:
    """Take hypotheses `order` (N, K) of each stream in place of what is there."""
    first = torch.arange(order.size(0), device=order.device)[:, None] * state.log_probs.size(1)
    rows = (first + order).flatten()
    per_stream = {}
    for field in dataclasses.fields(state):
        if field.name != "num_frames":
            value = getattr(state, field.name)
            per_stream[field.name] = value.flatten(0, 1).index_select(0, rows).view(*order.shape, *value.shape[2:])
    return SearchState(**per_stream, num_frames=state.num_frames)
