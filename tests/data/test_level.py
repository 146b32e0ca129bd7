"""Level normalization: independent of the gain and of preceding silence, causal, and the same in streams."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from icefall_pathways.data.features import FbankConfig, StreamingFbank
from icefall_pathways.data.level import LevelNormalizer, normalize_frames, normalize_level

_FLOOR = -15.9424  # log-mel energy of digital silence


def speech(num_frames: int, seed: int) -> Tensor:
    """Return features of speech-like energies, from 40 dB below to the level of normal recordings."""
    generator = torch.Generator().manual_seed(seed)
    energies = torch.rand(num_frames, 1, generator=generator).mul(-9.0).add(1.0)
    return energies + torch.randn(num_frames, 80, generator=generator)


def normalized(features: Tensor) -> Tensor:
    return normalize_level(features, "running-max")


@given(gain=st.floats(-6, 6), num_frames=st.integers(1, 300), seed=st.integers(0, 100))
@settings(deadline=None)
def test_a_gain_does_not_change_the_features(gain: float, num_frames: int, seed: int) -> None:
    features = speech(num_frames, seed)
    features[0] = 1.0  # the first frame is speech, not silence
    torch.testing.assert_close(normalized(features + gain), normalized(features), atol=1e-4, rtol=0)


@given(st.integers(0, 400), st.integers(0, 100))
@settings(deadline=None)
def test_preceding_digital_silence_does_not_change_the_features(num_silent: int, seed: int) -> None:
    features = speech(100, seed)
    silence = torch.full((num_silent, 80), _FLOOR)
    torch.testing.assert_close(normalized(torch.cat([silence, features]))[num_silent:], normalized(features))


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(0, 100))
@settings(deadline=None)
def test_blocks_of_any_sizes_give_the_features_of_the_whole(sizes: list[int], seed: int) -> None:
    blocks = speech(sum(sizes), seed).split(sizes)
    normalizer = LevelNormalizer()
    stream = [normalizer.accept(block) for block in blocks]
    torch.testing.assert_close(
        torch.cat([torch.empty(0, 80), *stream]), normalized(torch.cat([*blocks])) if sizes else torch.empty(0, 80)
    )


@given(shift=st.integers(1, 40), overlap=st.integers(0, 60), seed=st.integers(0, 100))
@settings(deadline=None)
def test_overlapping_blocks_have_the_features_of_the_whole(shift: int, overlap: int, seed: int) -> None:
    features, level = speech(6 * shift + overlap, seed), torch.zeros(())
    expected = normalized(features)
    for start in range(0, 6 * shift, shift):
        block, levels = normalize_frames(features[start : start + shift + overlap], level)
        torch.testing.assert_close(block, expected[start : start + shift + overlap])
        level = levels[shift - 1]


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=70))
@settings(deadline=None)
def test_the_level_is_the_decaying_maximum(energies: list[float]) -> None:
    _, levels = normalize_frames(torch.tensor(energies, dtype=torch.float64)[:, None].expand(-1, 80), torch.zeros(()))
    level = 0.0
    for energy, actual in zip(energies, levels.tolist(), strict=True):
        level = max(level - 0.01, energy + 11.0)
        assert actual == pytest.approx(level, abs=1e-9)


@given(st.integers(1, 99), st.integers(0, 100))
@settings(deadline=None)
def test_later_frames_do_not_change_earlier_ones(num_frames: int, seed: int) -> None:
    features = speech(100, seed)
    torch.testing.assert_close(normalized(features[:num_frames]), normalized(features)[:num_frames])


def test_features_follow_a_change_of_the_level() -> None:
    loud, quiet = speech(200, 1), speech(3000, 2)
    after = normalized(torch.cat([loud, quiet - 5]))[-500:]
    torch.testing.assert_close(after, normalized(quiet - 5)[-500:], atol=1e-3, rtol=0)


@pytest.mark.parametrize("gain", [6, -6, -12, -20, -30])
def test_audio_of_any_level_has_nearly_the_same_features(gain: int) -> None:
    samples = torch.randn(16000) * 0.1 * ((2 - torch.arange(16000) // 1000 % 3) / 2 + 0.05)
    expected, features = (_stream(s) for s in (samples, samples * 10 ** (gain / 20)))
    torch.testing.assert_close(features, expected, atol=0.02, rtol=0)


def test_streams_are_normalized_as_whole_utterances() -> None:
    samples = torch.randn(30000) * 0.1
    raw = torch.as_tensor(FbankConfig().extractor().extract(samples.numpy(), 16000))
    torch.testing.assert_close(_stream(samples), normalized(raw), atol=1e-3, rtol=0)


def _stream(samples: Tensor) -> Tensor:
    fbank = StreamingFbank(FbankConfig(level_norm="running-max"))
    return torch.cat([*(fbank.accept(block) for block in samples.split(1000)), fbank.flush()])
