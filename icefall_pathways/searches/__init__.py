"""The searches, one implementation each for whole utterances and for streams.

A search carries a `SearchState` from one call of `advance` to the next, so decoding a whole utterance is one call and
decoding a stream is one call per chunk; the result is the same however the frames are cut. All of them emit at most one
token per frame. Streams and hypotheses are axes of tensors (or of k2's ragged ones): the only loop is that over frames.
"""

from icefall_pathways.searches.base import Hypothesis, Search, SearchState
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
    "SearchState",
]
