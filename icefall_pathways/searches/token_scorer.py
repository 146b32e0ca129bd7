"""Interface of token scorers: hotwords and language models whose scores are added to those of the transducer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.ranges import Options


class TokenScorer(Protocol):
    """A deterministic automaton over tokens, whose states are integers, for shallow fusion.

    A search keeps one state per hypothesis in integer tensors, which it reorders, splits and joins. States of an n-gram
    model are its histories. A neural language model keeps its hidden states in a table of its own and uses the rows as
    states; `advance` appends a row per hypothesis. Searches do not report which states are still in use, so that such
    a table has to limit its size itself, for example by computing old hidden states again from their tokens.

    Methods do not modify their arguments.

    Attributes:
      vocab_size: Number of tokens V, including the blank, which is never scored.
      start: The state of an empty hypothesis.
    """

    vocab_size: int
    start: int

    def to(self, device: torch.device | str) -> "TokenScorer":
        """Move all tensors to a device, in place, and return the scorer."""

    def scores(self, states: Tensor) -> Tensor:
        """Return the score of every token after `states` (M,): (M, V); the caller may modify it."""

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the states (M,) that follow `states` (M,) after `tokens` (M,)."""

    def final_scores(self, states: Tensor) -> Tensor:
        """Return the scores added where hypotheses end in `states`, of any shape."""


@dataclass(frozen=True)
class ScorerOptions(Options, ABC):
    """Options of a token scorer. Each scorer has a subclass; its fields become options of the decoding scripts.

    Attributes:
      enabled_by: Name of the field that enables the scorer unless it is None; the other fields have an effect only
        with it.
    """

    enabled_by: ClassVar[str]

    @property
    def enabled(self) -> bool:
        """True if the scorer is used."""
        return getattr(self, self.enabled_by) is not None

    @abstractmethod
    def build_scorer(self, tokenizer: Tokenizer, language: str) -> TokenScorer:
        """Build the scorer, which is enabled.

        Args:
          tokenizer: The tokenizer of the model.
          language: Language code; replaces {language} in paths.

        Raises:
          ValueError: An option is out of range, or a file is missing or damaged.
        """

    @abstractmethod
    def scorer_name_part(self) -> str:
        """Return the options that change the output, as a part of the names of result files."""

    @property
    def ignored(self) -> list[str]:
        """Names of the given fields that have no effect because the scorer is not enabled."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return [] if self.enabled else given


def path_for_language(path: Path | None, language: str) -> Path:
    """Return the path of an enabled scorer, with {language} replaced by the language code."""
    return Path(str(path).replace("{language}", language))
