"""Transducer searches, each with one implementation for whole utterances and streams.

A search passes a `SearchState` from one call of `advance` to the next. Decoding a whole utterance is one call and
decoding a stream is one call per chunk; the result does not depend on how the frames are split. Every search emits at
most one token per frame. Streams and hypotheses are axes of tensors (or of k2's ragged tensors), so that the only loop
is over frames. `registry.py` lists all searches, `scorers.py` the hotwords and language models that they may use, and
`config.py` defines their command-line options.
"""

from icefall_pathways.searches.base import Hypothesis, Search, SearchOptions, SearchState
from icefall_pathways.searches.fast_beam import FastBeamSearch
from icefall_pathways.searches.frame_search import BeamState
from icefall_pathways.searches.greedy import GreedySearch
from icefall_pathways.searches.modified_beam import ModifiedBeamSearch

__all__ = [
    "BeamState",
    "FastBeamSearch",
    "GreedySearch",
    "Hypothesis",
    "ModifiedBeamSearch",
    "Search",
    "SearchOptions",
    "SearchState",
]
