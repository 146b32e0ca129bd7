"""Options of decoding scripts that select and configure a search."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.ranges import check_ranges, option_name
from icefall_pathways.searches.base import Search, SearchOptions, TransducerHead
from icefall_pathways.searches.registry import SEARCHES, get_search_options

if TYPE_CHECKING:
    SearchName = str
else:
    SearchName = Literal[tuple(SEARCHES)]  # lists the choices in --help

# Command lines are flat: one class inherits the options of all searches, so that each option is defined once.
_AllSearchOptions: Any = dataclasses.make_dataclass(
    "_AllSearchOptions", [], bases=tuple(SEARCHES.values()), frozen=True
)


@dataclass(frozen=True)
class SearchConfig(_AllSearchOptions):
    """Options of the search.

    Raises:
      ValueError: The search is unknown, or an option is given that the selected search does not use.
    """

    decoding_method: SearchName = "greedy_search"
    """Search algorithm."""

    def __post_init__(self) -> None:
        check_ranges(self)
        selected = {field.name for field in dataclasses.fields(self.search_options)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for search, options in SEARCHES.items():
            for field in dataclasses.fields(options):
                if field.name not in selected and getattr(self, field.name) != defaults[field.name]:
                    raise ValueError(
                        f"{option_name(type(self), field.name)} works with --decoding-method {search}, "
                        f"not with {self.decoding_method}"
                    )

    @property
    def search_options(self) -> SearchOptions:
        """Options of the selected search."""
        options = get_search_options(self.decoding_method)
        return options(**{field.name: getattr(self, field.name) for field in dataclasses.fields(options)})

    @property
    def search_suffix(self) -> str:
        """The search and the options that change its output, as a part of result file names."""
        return "-".join([self.decoding_method, *self.file_name_parts()])

    @property
    def depends_on_language(self) -> bool:
        """True if the selected search differs between languages."""
        return self.search_options.depends_on_language

    def build_search(self, model: TransducerHead, tokenizer: Tokenizer, language: str) -> Search:
        """Build the selected search; see `SearchOptions.build_search`."""
        return self.search_options.build_search(model, tokenizer, language)

    def file_name_parts(self) -> list[str]:
        """Return the options that change the output of the selected search, as parts of result file names."""
        return self.search_options.file_name_parts()
