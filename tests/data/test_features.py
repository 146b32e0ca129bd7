"""Features: parity with Lhotse's extractor, and of streaming with offline extraction."""

import math

import pytest
import torch
from lhotse import Fbank as LhotseFbank
from lhotse import FbankConfig as LhotseFbankConfig
from lhotse import FeatureExtractor
from torch import Tensor

from icefall_pathways.data.features import FbankConfig, StreamingFbank

RATE = 16000


def speech_like(num_samples: int) -> Tensor:
    """Return a chirp in noise, in [-1, 1]."""
    time = torch.arange(num_samples) / RATE
    return 0.3 * torch.sin(2 * math.pi * (200 + 900 * time) * time) + 0.05 * torch.randn(num_samples)


def offline(samples: Tensor, config: FbankConfig | None = None) -> Tensor:
    return torch.as_tensor((config or FbankConfig()).extractor().extract(samples, RATE))


def lhotse_fbank(samples: Tensor, high_freq: float) -> Tensor:
    config = LhotseFbankConfig(
        sampling_rate=RATE, num_filters=80, low_freq=20.0, high_freq=high_freq, snip_edges=False, dither=0.0
    )
    return torch.as_tensor(LhotseFbank(config).extract(samples.numpy(), RATE))


@pytest.mark.parametrize("num_samples", [16000, 20017, 31999])
def test_features_equal_those_of_lhotse(num_samples: int) -> None:
    samples = speech_like(num_samples)
    torch.testing.assert_close(offline(samples), lhotse_fbank(samples, -400.0), rtol=0, atol=2e-2)


def test_default_filters_are_those_of_lhotse() -> None:
    """kaldifeat's own default of high_freq, 0, gives other filters."""
    samples = speech_like(RATE)
    expected, other = lhotse_fbank(samples, -400.0), lhotse_fbank(samples, 0.0)
    assert (offline(samples) - expected).abs().mean() < 1e-3
    assert (offline(samples) - other).abs().mean() > 1e-2
    assert (offline(samples, FbankConfig(high_freq=0.0)) - other).abs().mean() < 1e-3


def test_there_is_one_frame_per_10_ms() -> None:
    for num_samples, num_frames in ((16000, 100), (16079, 100), (16080, 101), (8000, 50)):
        assert offline(speech_like(num_samples)).shape == (num_frames, 80)


def test_the_extractor_is_registered_with_lhotse() -> None:
    extractor = FbankConfig().extractor()
    assert type(FeatureExtractor.from_dict(extractor.to_dict())) is type(extractor)
    assert extractor.feature_dim(RATE) == 80


def test_batched_extraction_equals_single_extraction() -> None:
    batch = [speech_like(n) for n in (9000, 16000, 12345)]
    together = FbankConfig().extractor().extract_batch(batch, RATE)
    for samples, features in zip(batch, together, strict=True):
        torch.testing.assert_close(torch.as_tensor(features), offline(samples), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [161, 400, 1000, 16000, 20017])
@pytest.mark.parametrize("max_piece", [1, 50, 700, 5000])
def test_streaming_features_equal_offline_features(num_samples: int, max_piece: int) -> None:
    num_samples = min(num_samples, 2000) if max_piece == 1 else num_samples
    samples, stream, frames, start = speech_like(num_samples), StreamingFbank(), [], 0
    while start < num_samples:
        size = int(torch.randint(0, max_piece, ())) + 1
        frames.append(stream.accept(samples[start : start + size]))
        start += size
    frames.append(stream.flush())
    torch.testing.assert_close(torch.cat(frames), offline(samples), rtol=0, atol=1e-5)


def test_streaming_returns_frames_as_soon_as_they_are_final() -> None:
    """Frame t covers samples up to 160 t + 280."""
    stream = StreamingFbank()
    assert stream.accept(speech_like(279)).size(0) == 0
    assert stream.accept(speech_like(1)).size(0) == 1
    assert stream.accept(speech_like(16000 - 280)).size(0) == 98
    assert stream.flush().size(0) == 1


def test_a_stream_shorter_than_a_frame_has_one_frame() -> None:
    stream = StreamingFbank()
    assert stream.accept(speech_like(100)).size(0) == 0
    frames = stream.flush()
    assert frames.shape == (1, 80)
    assert bool(frames.isfinite().all())


def test_an_empty_stream_has_no_frames() -> None:
    assert StreamingFbank().flush().shape == (0, 80)
