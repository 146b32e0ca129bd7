"""What every search is: states of streams that can be split and joined, and hypotheses in the end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


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
      log_prob: Natural logarithm of the transducer's probability of all paths merged into this hypothesis.
      bonus: What hotwords and the language model add to it.
    """

    tokens: list[int]
    timestamps: list[int]
    log_prob: float
    bonus: float = 0.0

    @property
    def score(self) -> float:
        """What the search compares, before it is divided by the number of tokens."""
        return self.log_prob + self.bonus


class SearchState(ABC):
    """What a search remembers of N streams."""

    @abstractmethod
    def split(self) -> Sequence["SearchState"]:
        """Give every stream a state of its own, so that it can leave the batch."""

    @staticmethod
    def join(states: Sequence["SearchState"]) -> "SearchState":
        """Make one batch of streams of any age, in the given order; the inverse of `split`."""
        return states[0]._join(states)

    @abstractmethod
    def _join(self, states: Sequence[Any]) -> "SearchState":
        """Join `states`, of which this is the first."""


State = TypeVar("State", bound=SearchState)


class Search(ABC, Generic[State]):
    """Turns encoder frames into hypotheses.

    Args:
      model: A transducer; its predictor and joiner are used.
      blank_penalty: Subtracted from the blank's logit: the larger, the fewer deletions.
    """

    def __init__(self, model: TransducerHead, blank_penalty: float = 0.0) -> None:
        self.model = model
        self.blank_penalty = blank_penalty
        self.blank_id: int = model.decoder.blank_id
        self.context_size: int = model.decoder.context_size

    @abstractmethod
    def init(self, batch_size: int) -> State:
        """The state of streams that have not begun: one empty hypothesis each."""

    @abstractmethod
    def advance(self, state: State, encoder_out: Tensor, lens: Tensor) -> State:
        """Read the next frames of every stream.

        Args:
          state: Of N streams; not to be used again unless the search says that it may.
          encoder_out: (N, T, D) the next encoder outputs.
          lens: (N,) how many of them belong to each stream; frames beyond change nothing.
        """

    @abstractmethod
    def results(self, state: State) -> list[Hypothesis]:
        """The best hypothesis of each stream."""

    @abstractmethod
    def n_best(self, state: State) -> list[list[Hypothesis]]:
        """The hypotheses of each stream, best first; they differ in their tokens."""

    @abstractmethod
    def stable(self, state: State) -> list[int]:
        """How many leading tokens of each stream's best hypothesis no later frame can change."""

    @abstractmethod
    def reset_hypothesis(self, state: State) -> State:
        """The state for what is said next, without what was found up to now.

        Where the search can, it follows the last tokens of the best hypothesis, as if nothing had been cut.
        """

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.joiner.encoder_proj.weight.device
        return device

    @property
    def vocab_size(self) -> int:
        """The model's tokens, the blank included."""
        size: int = self.model.joiner.output_linear.out_features
        return size

    def _logits(self, frames: Tensor, predictor_out: Tensor) -> Tensor:
        """Logits (..., V) of projected frames and predictor outputs (..., joiner_dim), the blank penalty applied."""
        logits: Tensor = self.model.joiner(frames, predictor_out, project_input=False).float()
        if self.blank_penalty:
            logits[..., self.blank_id] -= self.blank_penalty
        return logits

    def _predict(self, context: Tensor) -> Tensor:
        """Projected predictor output (M, joiner_dim) for the last tokens (M, context_size)."""
        projected: Tensor = self.model.joiner.decoder_proj(self.model.decoder(context, need_pad=False))[:, 0]
        return projected
