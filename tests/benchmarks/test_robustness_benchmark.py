"""The conditions of the robustness benchmark."""

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def robustness(load_benchmark):
    return load_benchmark("robustness")


SPEECH = [(torch.full((1000,), 0.1 * index), [f"word{index}"]) for index in range(1, 6)]


@pytest.mark.parametrize("fill", ["zeros", "noise at -60 dBFS", "noise at -45 dBFS"])
@pytest.mark.parametrize("position", ["before", "after", "between"])
def test_silence_and_noise_have_the_stated_position_duration_and_level(robustness, fill, position):
    changed = list(robustness.Silence(fill, position, 0.5).apply(SPEECH, np.random.default_rng(1)))
    start = {"before": 0, "after": 1000, "between": 1000}[position]
    assert [words for _, words in changed] == (
        [["word1", "word2"], ["word3", "word4"]] if position == "between" else [words for _, words in SPEECH]
    )
    for samples, words in changed:
        assert samples.numel() == 8000 + 1000 * len(words)
        level = float(samples[start : start + 8000].square().mean().sqrt())
        expected = 0.0 if fill == "zeros" else 10 ** (float(fill.split()[2]) / 20)
        assert level == pytest.approx(expected, rel=0.05)
        rest = torch.cat([samples[:start], samples[start + 8000 :]])
        assert rest.min() > 0


def test_gains_scale_the_samples(robustness):
    changed = robustness.Gain(-20.0).apply(SPEECH, np.random.default_rng(1))
    for (samples, words), (original, original_words) in zip(changed, SPEECH, strict=True):
        torch.testing.assert_close(samples, 0.1 * original)
        assert words == original_words


@pytest.mark.parametrize("mu_law", [False, True])
def test_telephones_keep_what_is_below_4_khz(robustness, mu_law):
    """Tones of 1 and 6 kHz; mu-law has a signal-to-noise ratio of about 38 dB."""
    time = torch.arange(16000) / 16000
    low, high = (0.3 * torch.sin(2 * torch.pi * frequency * time) for frequency in (997, 6000))
    ((samples, words),) = robustness.Telephone(mu_law).apply([(low + high, ["word"])], np.random.default_rng(1))
    assert words == ["word"] and samples.shape == low.shape
    error = float(10 * torch.log10((samples - low)[1000:-1000].square().mean() / low.square().mean()))
    assert -45 < error < -30 if mu_law else error < -60


def test_cells_that_miss_the_goal_are_marked(robustness):
    assert robustness._cell(6.0, 5.0) == "6.0 (+1.0)"
    assert robustness._cell(6.1, 5.0) == "6.1 (+1.1) **"
