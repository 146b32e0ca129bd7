"""Streaming decoding equals offline decoding, for every encoder and several searches."""

from itertools import starmap

import pytest
import torch
from stream_models import MODELS, make_model

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import Source, StreamingDecoder
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch

LENGTHS = [
    1,
    3,
    8,
    15,
    16,
    17,
    24,
    25,
    31,
    32,
    33,
    60,
    97,
    128,
    131,
]  # feature frames, close to chunk boundaries


@pytest.fixture(params=[kind for kind in MODELS if kind != "emformer-ctc"])
def model(request):
    return make_model(request.param)


@pytest.fixture(params=["greedy", "beam"])
def search(request, model):
    return GreedySearch(model) if request.param == "greedy" else ModifiedBeamSearch(model, beam_size=4)


def _offline(model, search, features):
    """Decode whole utterances in one padded batch."""
    lens = torch.tensor([len(x) for x in features])
    x = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    with torch.inference_mode():
        encoder_out, out_lens = model.encode(x, lens)
    return search.results(search.advance(search.init(len(features)), encoder_out, out_lens))


def _assert_same(streaming, offline):
    assert [x.tokens for x in streaming] == [x.tokens for x in offline]
    assert [x.timestamps for x in streaming] == [x.timestamps for x in offline]
    assert [x.log_prob for x in streaming] == pytest.approx([x.log_prob for x in offline], abs=1e-3)


def _decode(model, search, utterances, num_streams, from_features):
    decoder = StreamingDecoder(model, search, FbankConfig())
    hypotheses = dict(decoder.decode(starmap(Source, enumerate(utterances)), num_streams, from_features))
    assert len(hypotheses) == len(utterances)
    return [hypotheses[i] for i in range(len(utterances))]


@pytest.mark.parametrize(("num_streams", "block"), [(4, 16), (100, 7), (1, 1000)])
def test_streaming_decoding_of_features_equals_offline_decoding(model, search, num_streams, block):
    features = [torch.randn(length, 80) * 3 - 8 for length in LENGTHS]
    offline = _offline(model, search, features)
    assert sum(len(hypothesis.tokens) for hypothesis in offline) > 20
    assert len({token for hypothesis in offline for token in hypothesis.tokens}) > 5
    streaming = _decode(model, search, [x.split(block) for x in features], num_streams, from_features=True)
    _assert_same(streaming, offline)


@pytest.mark.parametrize("block", [2560, 1111])
def test_streaming_decoding_of_samples_equals_offline_decoding(model, search, block):
    extractor = FbankConfig().extractor()
    samples = [torch.randn(length) * 0.1 for length in (900, 4000, 7777, 16000, 12345)]
    for signal in samples:
        signal *= (torch.arange(len(signal)) // 1000 % 3 + 0.01).float()
    features = [torch.as_tensor(extractor.extract(x.numpy(), 16000)) for x in samples]
    offline = _offline(model, search, features)
    assert sum(len(hypothesis.tokens) for hypothesis in offline) > 5
    streaming = _decode(model, search, [x.split(block) for x in samples], 2, from_features=False)
    _assert_same(streaming, offline)


def test_next_utterance_starts_when_one_ends(model, search):
    started = []

    def utterances():
        for length in [160, 16, 16, 16, 160, 16]:
            started.append(length)
            yield Source(len(started), torch.randn(length, 80).split(16))

    decoder = StreamingDecoder(model, search, FbankConfig())
    finished = []
    for key, _ in decoder.decode(utterances(), num_streams=2, from_features=True):
        finished.append(key)
        assert len(started) - len(finished) <= 1
    assert finished == [2, 3, 4, 1, 6, 5]


def test_streams_of_different_ages_share_a_batch(model, search):
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
def test_batch_composition_does_not_change_results(model, search):
    """Compare reordered, smaller and larger batches of streams with single streams."""
    decoder = StreamingDecoder(model, search, FbankConfig())
    features = [torch.randn(8 * model.chunk_shift, 80) * 3 - 8 for _ in range(3)]
    streams, singles = [decoder.open() for _ in features], [decoder.open() for _ in features]
    for stream, single, x in zip(streams, singles, features, strict=True):
        stream.accept_features(x)
        single.accept_features(x)
    for order in ([0, 1], [0, 1], [1, 0], [1], [1, 2, 0], [1, 2, 0], [2, 0]):
        assert len(decoder.advance([streams[i] for i in order])) == len(order)
        for i in order:
            decoder.advance([singles[i]])
        queried = order[::-1]
        _assert_same(decoder.results([streams[i] for i in queried]), decoder.results([singles[i] for i in queried]))
        for i in order:
            for state, expected in zip(streams[i].state.encoder_states, singles[i].state.encoder_states, strict=True):
                torch.testing.assert_close(state, expected, atol=1e-4, rtol=1e-4)


def test_empty_audio_has_no_tokens(model, search):
    assert _decode(model, search, [[], [torch.zeros(0)]], 2, from_features=False)[0].tokens == []
    assert StreamingDecoder(model, search, FbankConfig()).results([]) == []


def test_finished_stream_accepts_no_audio(model, search):
    stream = StreamingDecoder(model, search, FbankConfig()).open()
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.accept_samples(torch.zeros(1600))
