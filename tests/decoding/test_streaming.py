from itertools import starmap

import pytest
import torch
from stream_models import MODELS, make_model

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import Source, StreamingDecoder
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch

LENGTHS = [1, 3, 8, 15, 16, 17, 24, 25, 31, 32, 33, 60, 97, 128, 131]  # feature frames: around chunks and windows


@pytest.fixture(params=[kind for kind in MODELS if kind != "emformer-ctc"])
def model(request):
    return make_model(request.param)


@pytest.fixture(params=["greedy", "beam"])
def search(request, model):
    return GreedySearch(model) if request.param == "greedy" else ModifiedBeamSearch(model, beam_size=4)


def _offline(model, search, features):
    """Search whole utterances, all in one padded batch."""
    lens = torch.tensor([len(x) for x in features])
    x = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    with torch.inference_mode():
        encoder_out, out_lens = model.encode(x, lens)
    return search.results(search.advance(search.init(len(features)), encoder_out, out_lens))


def _assert_same(streaming, offline):
    assert [found.tokens for found in streaming] == [found.tokens for found in offline]
    assert [found.timestamps for found in streaming] == [found.timestamps for found in offline]
    assert [x.log_prob for x in streaming] == pytest.approx([x.log_prob for x in offline], abs=1e-3)


def _decode(model, search, utterances, num_streams, from_features):
    decoder = StreamingDecoder(model, search, FbankConfig())
    found = dict(decoder.decode(starmap(Source, enumerate(utterances)), num_streams, from_features))
    assert len(found) == len(utterances)
    return [found[i] for i in range(len(utterances))]


@pytest.mark.parametrize(("num_streams", "piece"), [(4, 16), (100, 7), (1, 1000)])
def test_features_in_chunks_give_the_tokens_of_whole_utterances(model, search, num_streams, piece):
    features = [torch.randn(length, 80) * 3 - 8 for length in LENGTHS]
    offline = _offline(model, search, features)
    assert sum(len(found.tokens) for found in offline) > 20
    assert len({token for found in offline for token in found.tokens}) > 5
    streaming = _decode(model, search, [x.split(piece) for x in features], num_streams, from_features=True)
    _assert_same(streaming, offline)


@pytest.mark.parametrize("piece", [2560, 1111])
def test_samples_in_chunks_give_the_tokens_of_whole_utterances(model, search, piece):
    extractor = FbankConfig().extractor()
    samples = [torch.randn(length) * 0.1 for length in (900, 4000, 7777, 16000, 12345)]
    for signal in samples:
        signal *= (torch.arange(len(signal)) // 1000 % 3 + 0.01).float()
    features = [torch.as_tensor(extractor.extract(x.numpy(), 16000)) for x in samples]
    offline = _offline(model, search, features)
    assert sum(len(found.tokens) for found in offline) > 5
    streaming = _decode(model, search, [x.split(piece) for x in samples], 2, from_features=False)
    _assert_same(streaming, offline)


def test_an_utterance_that_ends_makes_room_for_the_next(model, search):
    begun = []

    def utterances():
        for length in [160, 16, 16, 16, 160, 16]:
            begun.append(length)
            yield Source(len(begun), torch.randn(length, 80).split(16))

    decoder = StreamingDecoder(model, search, FbankConfig())
    ended = []
    for key, _ in decoder.decode(utterances(), num_streams=2, from_features=True):
        ended.append(key)
        assert len(begun) - len(ended) <= 1
    assert ended == [2, 3, 4, 1, 6, 5]


def test_streams_of_different_age_share_a_batch(model, search):
    features = [torch.randn(96, 80) for _ in range(2)]
    decoder = StreamingDecoder(model, search, FbankConfig())
    old, new = decoder.open(), decoder.open()
    old.accept_features(features[0])
    assert decoder.advance([old, new]) == [old]
    new.accept_features(features[1])
    assert decoder.advance([old, new]) == [old, new]
    old.finish()
    new.finish()
    while decoder.advance([old, new]):
        pass
    assert decoder.is_done(old)
    assert decoder.is_done(new)
    _assert_same(decoder.results([old, new]), _offline(model, search, features))


@torch.inference_mode()
def test_streams_meet_in_other_batches(model, search):
    """In another order, without one of them, with a new one, and all again: as if each were alone."""
    decoder = StreamingDecoder(model, search, FbankConfig())
    features = [torch.randn(8 * model.chunk_shift, 80) * 3 - 8 for _ in range(3)]
    streams, alone = [decoder.open() for _ in features], [decoder.open() for _ in features]
    for stream, lonely, x in zip(streams, alone, features, strict=True):
        stream.accept_features(x)
        lonely.accept_features(x)
    for order in ([0, 1], [0, 1], [1, 0], [1], [1, 2, 0], [1, 2, 0], [2, 0]):
        assert len(decoder.advance([streams[i] for i in order])) == len(order)
        for i in order:
            decoder.advance([alone[i]])
        asked = order[::-1]
        _assert_same(decoder.results([streams[i] for i in asked]), decoder.results([alone[i] for i in asked]))
        for i in order:
            for found, expected in zip(streams[i].state.encoder_states, alone[i].state.encoder_states, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_graph_takes_over(monkeypatch, model, search):
    """On demand, or in the middle of streams; what is found stays the same."""
    features = [(torch.randn(length, 80) * 3 - 8).split(16) for length in LENGTHS]
    eager = _decode(model, search, features, 4, from_features=True)
    decoder = StreamingDecoder(model, search, FbankConfig(), graph_after=3)
    streams = dict(decoder.decode(starmap(Source, enumerate(features)), 4, from_features=True))
    assert len(decoder._graphs) == 1
    _assert_same([streams[i] for i in range(len(features))], eager)
    decoder = StreamingDecoder(model, search, FbankConfig())
    decoder.compile()
    monkeypatch.setattr(model, "stream", None)  # is not called any more
    streams = dict(decoder.decode(starmap(Source, enumerate(features)), 4, from_features=True))
    _assert_same([streams[i] for i in range(len(features))], eager)


def test_nothing_was_said(model, search):
    assert _decode(model, search, [[], [torch.zeros(0)]], 2, from_features=False)[0].tokens == []
    assert StreamingDecoder(model, search, FbankConfig()).results([]) == []


def test_a_finished_stream_takes_no_more(model, search):
    stream = StreamingDecoder(model, search, FbankConfig()).open()
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.accept_samples(torch.zeros(1600))
