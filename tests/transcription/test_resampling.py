"""Sample rate conversion of streams."""

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.resampling import StreamingResampler

RATES = [8000, 11025, 16000, 22050, 44100, 48000, 96000, 17003]


def _resample(samples, rate, bounds=()):
    resampler = StreamingResampler(rate, 16000)
    blocks = torch.tensor_split(samples, sorted(min(bound, len(samples)) for bound in bounds))
    return torch.cat([*map(resampler.accept, blocks), resampler.flush()])


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    length=st.integers(0, 5000),
    bounds=st.lists(st.integers(0, 5000), max_size=8),
)
def test_streaming_equals_resampling_the_whole(rate, length, bounds):
    samples = torch.randn(length)
    resampled = _resample(samples, rate, bounds)
    assert abs(len(resampled) - length * 16000 / rate) <= 0.5
    if rate == 16000:
        assert torch.equal(resampled, samples)
    elif length > 0:
        torch.testing.assert_close(resampled, torch.from_numpy(soxr.resample(samples.numpy(), rate, 16000)))


def _tone_level(frequency, rate):
    """Return level of a resampled tone and of its error against the exact tone, in dB of the tone's level."""
    time = torch.arange(rate, dtype=torch.float64) / rate
    resampled = _resample(torch.sin(2 * torch.pi * frequency * time).float(), rate)[2000:-2000]
    exact = torch.sin(2 * torch.pi * frequency * torch.arange(16000, dtype=torch.float64) / 16000)[2000:-2000]
    return [float(10 * torch.log10(2 * x.double().square().mean())) for x in (resampled, resampled - exact)]


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_speech_frequencies_are_exact_and_higher_ones_do_not_alias(rate):
    for frequency in (100, 1000, 3000, 6000, 7000):
        if frequency < 0.45 * rate:
            assert _tone_level(frequency, rate)[1] < -60
    for frequency in (9000, 12000, 20000):
        if frequency < rate / 2:
            assert _tone_level(frequency, rate)[0] < -100


def test_memory_and_delay_are_bounded():
    resampler, num_samples = StreamingResampler(44100, 16000), 0
    for i in range(1, 200):
        num_samples += len(resampler.accept(torch.from_numpy(np.zeros(441, np.float32))))
        assert num_samples / 16000 > i * 0.01 - 0.05


@pytest.mark.parametrize("rate", [0, 16, 10**6])
def test_implausible_rates_are_errors(rate):
    with pytest.raises(AudioError, match=f"sample rate of {rate} Hz"):
        StreamingResampler(rate, 16000)
