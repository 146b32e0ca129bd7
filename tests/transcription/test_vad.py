"""Voice activity detection in transcription, on audio without speech."""

import pytest

from icefall_pathways import Pathways
from icefall_pathways.transcription.transcribe import TranscribeConfig, transcribe


def test_audio_without_speech_is_reported(exp_dir, speech, capsys):
    """The bursts of noise that other tests decode to words."""
    note = 'no speech detected in 3.0 s of audio; --vad none (in Python: vad="none") decodes all of it'
    config = TranscribeConfig(exp_dir=exp_dir, audio=(str(speech),), lang="en")
    assert transcribe(config) == {}
    captured = capsys.readouterr()
    assert captured.out.split() == [] and f"note: {speech}: {note}" in captured.err
    with pytest.warns(UserWarning, match="no speech detected in 3.0 s of audio"):
        transcript = Pathways.from_pretrained(exp_dir).transcribe(speech, "en")
    assert (transcript.text, transcript.duration, transcript.speech_seconds) == ("", 3.0, 0.0)


def test_all_audio_is_decoded_without_voice_activity_detection(exp_dir, speech, capsys):
    transcript = Pathways.from_pretrained(exp_dir, vad="none").transcribe(speech, "en")
    assert len(transcript.words) > 3 and transcript.speech_seconds == transcript.duration == 3.0
