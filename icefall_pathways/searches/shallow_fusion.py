"""Options of searches that add the scores of hotwords and language models."""

from dataclasses import dataclass, fields
from typing import Any

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.searches.scorers import SCORERS
from icefall_pathways.searches.token_scorer import ScorerOptions, TokenScorer

# The options classes of all scorers are base classes, so that each option is defined once.
_SCORER_OPTIONS: Any = tuple(SCORERS.values())


@dataclass(frozen=True)
class ShallowFusionOptions(*_SCORER_OPTIONS):  # type: ignore[misc]
    """Options of all scorers, inherited from the options class of each. Searches that use scorers derive from it.

    Raises:
      ValueError: An option of a scorer that is not enabled is given.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for scorer in self._scorers():
            if scorer.ignored:
                name, enabled_by = (text.replace("_", "-") for text in (scorer.ignored[0], scorer.enabled_by))
                raise ValueError(f"--{name} has no effect without --{enabled_by}: leave it out, or give both")

    def _scorers(self) -> list[ScorerOptions]:
        return [
            options(**{field.name: getattr(self, field.name) for field in fields(options)})
            for options in SCORERS.values()
        ]

    @property
    def enabled_scorers(self) -> list[ScorerOptions]:
        """Options of the enabled scorers, in the order of the registry."""
        return [scorer for scorer in self._scorers() if scorer.enabled]

    def build_scorers(self, tokenizer: Tokenizer, language: str) -> list[TokenScorer]:
        """Build the enabled scorers; see `ScorerOptions.build_scorer`."""
        return [scorer.build_scorer(tokenizer, language) for scorer in self.enabled_scorers]

    def scorer_name_parts(self) -> list[str]:
        """Return the options of enabled scorers that change the output, as parts of file names."""
        return [scorer.scorer_name_part() for scorer in self.enabled_scorers]

    @property
    def depends_on_language(self) -> bool:
        """True with hotwords or a language model."""
        return bool(self.enabled_scorers)
