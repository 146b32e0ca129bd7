"""Memory of streams: none keeps the states of others, or audio that was decoded."""

from collections import deque
from collections.abc import Iterator

import pytest
import torch
from stream_models import make_model
from torch import Tensor, nn
from window_scorer import WindowScorer

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import StreamingDecoder, voice_activity
from icefall_pathways.decoding.streaming.engine import OnnxEncoder
from icefall_pathways.decoding.streaming.session import Session
from icefall_pathways.decoding.streaming.voice_activity import SpeechGate
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch
from icefall_pathways.torch_compat import num_storage_bytes


@pytest.fixture(params=["emformer", "zipformer"])
def model(request):
    return make_model(request.param)


@pytest.fixture(params=[GreedySearch, lambda model: ModifiedBeamSearch(model, beam_size=4)], ids=["greedy", "beam"])
def decoder(request, model):
    return StreamingDecoder(model, request.param(model), FbankConfig())


def tensors(item: object) -> Iterator[Tensor]:
    """Yield the tensors that an object keeps in memory, without those of models."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (list, tuple, deque)):
        for part in item:
            yield from tensors(part)
    elif hasattr(item, "__dict__") and not isinstance(item, (nn.Module, type)):
        for name, value in vars(item).items():
            if name not in ("_extractor", "config", "streams"):  # shared by all streams, and weak references
                yield from tensors(value)


def kept_bytes(item: object) -> int:
    """Return the bytes of the storages of all tensors, of which views use only a part."""
    return num_storage_bytes(tensors(item))


def open_streams(decoder, count, num_frames):
    """Return streams with this number of chunks, which were decoded in one batch."""
    streams = [decoder.open() for _ in range(count)]
    for stream in streams:
        stream.accept_features(torch.randn(num_frames, 80) * 3 - 8)
    while decoder.advance(streams):
        pass
    return streams


@torch.inference_mode()
def test_stream_that_pauses_does_not_keep_the_others_of_its_batch(decoder):
    (alone,) = open_streams(decoder, 1, 100)
    paused, *others = open_streams(decoder, 8, 100)
    assert kept_bytes(paused.state) > 4 * kept_bytes(alone.state)  # the batch, until it is split
    for stream in others:
        stream.accept_features(torch.randn(100, 80))
    decoder.advance([paused, *others])
    assert kept_bytes(paused) <= 1.1 * kept_bytes(alone)


@torch.inference_mode()
def test_stream_with_a_new_hypothesis_does_not_keep_the_others_of_its_batch(decoder):
    (alone,) = open_streams(decoder, 1, 100)
    first, *_ = open_streams(decoder, 8, 100)
    decoder.reset_hypothesis(first)
    assert kept_bytes(first) <= 1.1 * kept_bytes(alone)


def test_decoded_audio_is_not_kept(decoder):
    session = Session([decoder.open()], SpeechGate(WindowScorer(lambda window: 1.0)))
    (stream,) = session.candidates
    for _ in range(5):
        session.accept_samples(torch.randn(16000) * 0.1)
        while decoder.advance([stream]):
            pass
    assert kept_bytes(stream.features) < 4 * 80 * decoder.model.chunk_window
    assert kept_bytes(stream.fbank) < 4 * 800  # samples of an incomplete frame
    assert kept_bytes(session.gate) < 4 * 512  # an incomplete window


def test_streams_share_the_filters_of_their_features(decoder):
    first, second = decoder.open().fbank, decoder.open().fbank
    assert first._extractor is second._extractor


def test_sessions_of_onnx_runtime_return_the_memory_of_a_batch(model):
    """Their arenas would keep the memory of the largest batch of each language."""
    onnx = OnnxEncoder(model, None, "")
    for session in (onnx._session("")._session, voice_activity._load_session()):
        assert session.get_session_options().enable_cpu_mem_arena is False
