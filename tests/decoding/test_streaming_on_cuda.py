"""Streaming decoding on a GPU equals streaming decoding on the CPU."""

import copy

import pytest
import torch
from stream_models import MODELS, make_model

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import Source, StreamingDecoder
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch

pytestmark = pytest.mark.usefixtures("cuda")

SEARCHES = {"greedy": GreedySearch, "beam": lambda model: ModifiedBeamSearch(model, beam_size=4)}


def decode(model, make_search, utterances):
    decoder = StreamingDecoder(model, make_search(model), FbankConfig())
    sources = (Source(index, x.split(16)) for index, x in enumerate(utterances))
    hypotheses = dict(decoder.decode(sources, num_streams=4, from_features=True))
    return [hypotheses[index] for index in range(len(utterances))]


@pytest.mark.parametrize("make_search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("kind", MODELS)
def test_streaming_decoding_equals_the_cpu(kind, make_search):
    model = make_model(kind)
    utterances = [3 * torch.randn(length, 80) - 8 for length in (1, 15, 16, 33, 97, 131)]
    with torch.backends.cudnn.flags(allow_tf32=False):
        actual = decode(copy.deepcopy(model).cuda(), make_search, utterances)
    expected = decode(model, make_search, utterances)
    assert sum(len(hypothesis.tokens) for hypothesis in expected) > 10
    assert [x.tokens for x in actual] == [x.tokens for x in expected]
    assert [x.timestamps for x in actual] == [x.timestamps for x in expected]
    assert [x.log_prob for x in actual] == pytest.approx([x.log_prob for x in expected], abs=1e-3)
