"""Registry of the searches.

To add a search, write a module with the search and its options, and add a line to `SEARCHES`. Every decoding script
then has its options, and `--decoding-method` accepts its name.
"""

from icefall_pathways.searches.base import SearchOptions
from icefall_pathways.searches.fast_beam import FastBeamSearchOptions
from icefall_pathways.searches.greedy import GreedySearchOptions
from icefall_pathways.searches.modified_beam import ModifiedBeamSearchOptions

SEARCHES: dict[str, type[SearchOptions]] = {
    "greedy_search": GreedySearchOptions,
    "modified_beam_search": ModifiedBeamSearchOptions,
    "fast_beam_search": FastBeamSearchOptions,
}
"""Options class of each search, by the value of `--decoding-method`."""


def get_search_options(name: str) -> type[SearchOptions]:
    """Return the options class of a search.

    Raises:
      ValueError: The search is unknown; the message lists the known ones.
    """
    if name not in SEARCHES:
        raise ValueError(f"--decoding-method {name}: unknown search, expected one of {', '.join(SEARCHES)}")
    return SEARCHES[name]
