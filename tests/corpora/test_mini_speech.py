import random

import numpy as np
import pytest
import torch
from babel.dates import get_month_names
from optional_packages import import_torchaudio

from icefall_pathways.corpora.mini_speech import (
    VOICES,
    SynthesisError,
    Synthesizer,
    draw_speakers,
    synthesize_utterance,
)
from icefall_pathways.languages import MLS_LANGUAGES, get_language


@pytest.fixture(scope="module")
def synthesizer() -> Synthesizer:
    return Synthesizer()


@pytest.mark.parametrize("voice", ["en+m3", "en+f2", "fr+edward", "it+croak"])
def test_samples_do_not_depend_on_previous_utterances(synthesizer: Synthesizer, voice: str) -> None:
    first = synthesizer.speak("eleven", voice, 160, 50, 50)
    synthesizer.speak("mardi quinze", "fr+klatt3", 120, 80, 10)
    np.testing.assert_array_equal(synthesizer.speak("eleven", voice, 160, 50, 50), first)


def test_resampling_equals_torchaudio_bit_for_bit(synthesizer: Synthesizer) -> None:
    resample = import_torchaudio().transforms.Resample(22050, 16000)
    samples = synthesizer.speak("eleven", "en+m3", 160, 50, 50)
    raw = np.frombuffer(b"".join(synthesizer._chunks), np.int16)
    np.testing.assert_array_equal(samples, resample(torch.from_numpy(raw.astype(np.float32) / 32768)).numpy())


@pytest.mark.parametrize("code", VOICES)
def test_every_speaker_has_a_plausible_duration_and_level(synthesizer: Synthesizer, code: str) -> None:
    month = get_month_names("wide", locale=code)[12]
    for speaker in draw_speakers(get_language(code), 42):
        samples = synthesizer.speak(month, speaker.voice, 160, 50, 50)
        assert 0.4 < len(samples) / 16000 < 1.6, speaker
        assert np.sqrt(np.mean(samples**2)) > 0.01, speaker


def test_voices_are_periodic_and_whispering_is_not(synthesizer: Synthesizer) -> None:
    for speaker in draw_speakers(MLS_LANGUAGES["en"], 42):
        assert periodicity(synthesizer.speak("eleven", speaker.voice, 160, 50, 50)) > 0.45, speaker
    assert periodicity(synthesizer.speak("eleven", "en+whisper", 160, 50, 50)) < 0.45


def periodicity(samples: np.ndarray) -> float:
    """Return the median, over loud frames of 64 ms, of the maximum autocorrelation at 35 to 500 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::320]
    power = np.square(frames).mean(axis=1)
    loud = frames[power > 0.02 * power.max()]
    spectra = np.fft.rfft(loud - loud.mean(axis=1, keepdims=True), 2048)
    lags = np.arange(32, 457)
    correlation = np.fft.irfft(np.abs(spectra) ** 2)
    return float(np.median((correlation[:, lags] / (1 - lags / 1024)).max(axis=1) / correlation[:, 0]))


def test_speakers_have_distinct_ids_and_voices() -> None:
    speakers = [speaker for code in VOICES for speaker in draw_speakers(get_language(code), 42)]
    assert len({speaker.speaker_id for speaker in speakers}) == len(speakers)
    english = draw_speakers(MLS_LANGUAGES["en"], 42)
    assert len({speaker.voice.split("+")[1] for speaker in english}) == len(english) >= 40
    assert {speaker.gender for speaker in english[:10]} == {"F", "M"}
    assert english != draw_speakers(MLS_LANGUAGES["en"], 43)


def test_recordings_of_a_sentence_depend_on_the_random_state(synthesizer: Synthesizer) -> None:
    speaker = draw_speakers(MLS_LANGUAGES["en"], 42)[0]
    first, repeated, different = (
        synthesize_utterance(synthesizer, "eleven", speaker, 42, random.Random(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, repeated)
    assert len(first) != len(different) or not np.allclose(first, different)
    for samples in (first, different):
        assert samples.dtype == np.float32
        assert 10 ** (-12.1 / 20) < np.abs(samples).max() < 10 ** (-2.9 / 20)


def test_an_unknown_voice_and_a_silent_text_are_errors(synthesizer: Synthesizer) -> None:
    with pytest.raises(SynthesisError, match=r"no voice 'xx\+f1'.*espeakng-loader"):
        synthesizer.speak("eleven", "xx+f1", 160, 50, 50)
    with pytest.raises(SynthesisError, match=r"silence for ''"):
        synthesizer.speak("", "en+f1", 160, 50, 50)


def test_missing_voice_data_is_an_error(synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espeakng_loader.get_data_path", lambda: "/nonexistent")
    with pytest.raises(SynthesisError, match="did not start with the voices in /nonexistent"):
        synthesizer.speak("eleven", "en+f1", 160, 50, 50)
