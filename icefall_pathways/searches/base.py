"""Search interface: options, hypotheses, and batched state that can be split and joined."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.ranges import Options, SignedFloat


class TransducerHead(Protocol):
    """Parts of a transducer that a search uses: the predictor (`decoder`, as in icefall) and the joiner."""

    decoder: Any
    joiner: Any


@dataclass(frozen=True)
class Hypothesis:
    """A decoded token sequence of one stream.

    Attributes:
      tokens: Token IDs without blanks.
      timestamps: The encoder frame at which each token was emitted, counted from the start of the stream.
      log_prob: Log-probability (natural logarithm) of the transducer, with the probabilities of all merged paths added.
      bonus: Sum of the scores of hotwords and language models.
      token_log_probs: Log-probability of each token given the tokens before it, in the frame that emits it; empty if
        the search does not offer it.
    """

    tokens: list[int]
    timestamps: list[int]
    log_prob: float
    bonus: float = 0.0
    token_log_probs: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Total score; hypotheses are ranked by the total score per token."""
        return self.log_prob + self.bonus


def common_prefix_length(tokens: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two token sequences."""
    pairs = zip(tokens, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class SearchState(ABC):
    """State of a search for N streams."""

    @abstractmethod
    def split(self) -> Sequence["SearchState"]:
        """Return one state per stream, so that each stream can leave the batch."""

    @staticmethod
    def join(states: Sequence["SearchState"]) -> "SearchState":
        """Concatenate states into one batch, in the given order; the inverse of `split`."""
        return states[0]._join(states)

    @abstractmethod
    def _join(self, states: Sequence[Any]) -> "SearchState":
        """Concatenate `states`, the first of which is `self`."""


State = TypeVar("State", bound=SearchState)


class Search(ABC, Generic[State]):
    """A search over encoder frames.

    Args:
      model: A transducer; only its predictor and joiner are used.
      blank_penalty: Subtracted from the logit of the blank; larger values give fewer deletions.
    """

    def __init__(self, model: TransducerHead, blank_penalty: float = 0.0) -> None:
        self.model = model
        self.blank_penalty = blank_penalty
        self.blank_id: int = model.decoder.blank_id
        self.context_size: int = model.decoder.context_size

    @abstractmethod
    def init(self, batch_size: int) -> State:
        """Return the initial state of `batch_size` streams: one empty hypothesis each."""

    @abstractmethod
    def advance(self, state: State, encoder_out: Tensor, lens: Tensor) -> State:
        """Process the next frames of every stream.

        Args:
          state: State of N streams. Do not reuse it, unless the search documents that `advance` does not modify it.
          encoder_out: Encoder frames (N, T, D).
          lens: Number of valid frames of each stream (N,); the remaining frames are ignored.

        Returns:
          The new state.
        """

    @abstractmethod
    def results(self, state: State) -> list[Hypothesis]:
        """Return the best hypothesis of each stream."""

    @abstractmethod
    def n_best(self, state: State) -> list[list[Hypothesis]]:
        """Return the hypotheses of each stream, best first, with distinct token sequences."""

    @abstractmethod
    def stable_lengths(self, state: State) -> list[int]:
        """Return the length of each stream's stable prefix: the leading tokens that later frames cannot change."""

    @abstractmethod
    def reset_hypothesis(self, state: State) -> State:
        """Return a state with one empty hypothesis per stream, for the next segment.

        The predictor context of the best hypothesis is kept if the search supports it.
        """

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.joiner.encoder_proj.weight.device
        return device

    @property
    def vocab_size(self) -> int:
        """Number of tokens, including the blank."""
        size: int = self.model.joiner.output_linear.out_features
        return size

    def _logits(self, frames: Tensor, predictor_out: Tensor) -> Tensor:
        """Return logits (..., V), with blank penalty, of projected frames and predictor outputs (..., joiner_dim)."""
        logits: Tensor = self.model.joiner(frames, predictor_out, project_input=False).float()
        if self.blank_penalty:
            logits[..., self.blank_id] -= self.blank_penalty
        return logits

    def _predict(self, context: Tensor) -> Tensor:
        """Return projected predictor outputs (M, joiner_dim) of the last tokens (M, context_size)."""
        projected: Tensor = self.model.joiner.decoder_proj(self.model.decoder(context, need_pad=False))[:, 0]
        return projected


@dataclass(frozen=True)
class SearchOptions(Options, ABC):
    """Options of a search. Each search has a subclass, whose fields become options of the decoding scripts."""

    blank_penalty: SignedFloat = 0.0
    """Subtracted from the logit of the blank. Larger values give fewer deletions and more insertions."""

    @property
    def depends_on_language(self) -> bool:
        """True if the search differs between languages, so that the language has to be known."""
        return False

    @abstractmethod
    def build_search(self, model: TransducerHead, tokenizer: Tokenizer, language: str) -> Search:
        """Build the search.

        Args:
          model: The transducer; the search runs on its device.
          tokenizer: The tokenizer of the model.
          language: Language code; replaces {language} in the paths of hotwords and language models.

        Raises:
          ValueError: An option is out of range, or a file is missing or damaged.
        """

    def file_name_parts(self) -> list[str]:
        """Return the options that change the output, as parts of result file names."""
        return [f"blank-penalty-{self.blank_penalty:g}"] if self.blank_penalty else []
