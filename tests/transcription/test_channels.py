"""Conversion of multi-channel audio to mono."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.channels import Downmixer

RATE = 16000


def _speech(seconds=1.0, seed=0):
    """Return noise (n,) in bursts, after 0.2 s of silence."""
    noise = np.random.default_rng(seed).standard_normal(int(RATE * seconds)) * 0.1
    noise[: RATE // 5] = 0
    return noise.astype(np.float32)


def _noise(num_channels, level, seconds=1.0):
    return np.random.default_rng(9).standard_normal((int(RATE * seconds), num_channels)).astype(np.float32) * level


def _mix(samples, channel=None, bounds=()):
    downmixer = Downmixer(samples.shape[1], RATE, channel)
    mono = [downmixer.accept(block) for block in np.split(samples, sorted(bounds))]
    return np.concatenate([*mono, downmixer.flush()]), downmixer.describe()


def test_equal_channels_are_averaged_exactly():
    speech = _speech()
    for num_channels in (1, 2, 4):
        mono, note = _mix(np.repeat(speech[:, None], num_channels, axis=1))
        np.testing.assert_array_equal(mono, speech)
        assert note is None


def test_different_channels_are_averaged():
    stereo = np.stack([_speech(seed=1), 0.5 * _speech(seed=2)], axis=1)
    mono, note = _mix(stereo)
    np.testing.assert_allclose(mono, stereo.mean(axis=1), atol=1e-6)
    assert note is None


@pytest.mark.parametrize("num_channels", [2, 6, 32, 64])
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_silent_channels_do_not_attenuate_speech(num_channels, noise):
    samples, speech = _noise(num_channels, noise), _speech()
    samples[:, 1] += speech
    mono, note = _mix(samples)
    np.testing.assert_allclose(mono[RATE // 2 :], speech[RATE // 2 :], atol=1e-3)
    assert note == f"transcribed channel 1 of {num_channels} (the others are silent or at least 20 dB quieter)"


def test_offset_of_a_sound_card_is_not_a_signal():
    samples, speech = np.full((RATE, 2), 0.3, np.float32), _speech()
    samples[:, 0] = speech
    np.testing.assert_array_equal(_mix(samples)[0][RATE // 4 :], speech[RATE // 4 :])


def test_inverted_phase_does_not_cancel_speech():
    speech = _speech()
    mono, note = _mix(np.stack([speech, -0.9 * speech], axis=1) + _noise(2, 1e-3))
    assert np.abs(mono - 0.95 * speech)[RATE // 2 :].max() < 0.01
    assert note == "transcribed channels 0, 1 of 2 (the phase of 1 is inverted)"


def test_speakers_on_separate_channels_are_both_kept():
    first, second = _speech(2.0, seed=1), _speech(2.0, seed=2)
    first[RATE:], second[:RATE] = 0, 0
    mono, note = _mix(np.stack([first, second], axis=1))
    np.testing.assert_array_equal(mono[: RATE - 1600], first[: RATE - 1600])
    np.testing.assert_allclose(mono[RATE + 3200 :], second[RATE + 3200 :] / 2, atol=1e-6)
    assert note is None


@settings(max_examples=20, deadline=None)
@given(bounds=st.lists(st.integers(0, 2 * RATE), max_size=9))
def test_result_does_not_depend_on_block_sizes(bounds):
    samples = _noise(3, 1e-3, seconds=2.0)
    samples[RATE:, 2] += _speech()
    expected = _mix(samples)
    mono, note = _mix(samples, bounds=bounds)
    np.testing.assert_array_equal(mono, expected[0])
    assert note == expected[1] and len(mono) == len(samples)


def test_requested_channel_is_used_as_it_is():
    samples = _noise(2, 0.1)
    mono, note = _mix(samples, channel=1)
    np.testing.assert_array_equal(mono, samples[:, 1])
    assert note is None
    for num_channels, expected in ((1, "only channel 0"), (2, "channels 0 to 1")):
        with pytest.raises(AudioError, match=f"channel 2 does not exist: the audio has {expected}"):
            Downmixer(num_channels, RATE, 2)


@pytest.mark.filterwarnings("error")
def test_samples_that_are_not_finite_are_passed_on():
    samples = _noise(2, 0.1)
    samples[3000, 0] = np.inf
    assert not np.isfinite(_mix(samples)[0][3000])
