"""Recordings of audio files, and supervisions of whole recordings."""

from contextlib import suppress
from pathlib import Path

import soundfile
from lhotse import Recording, SupervisionSegment

from icefall_pathways.languages import LanguageCode

_HEAD_BYTES = 4096
_UNKNOWN_LENGTH = 1 << 62  # samples; libsndfile reports the largest integer


def read_recording(path: Path, recording_id: str) -> Recording:
    """Return the recording of an audio file.

    Raises:
      ValueError: The header does not state the length, without which Lhotse cannot read the file, or has no channels.
    """
    _check_channels(path)
    recording = Recording.from_file(path, recording_id=recording_id)
    if recording.num_samples >= _UNKNOWN_LENGTH:
        raise ValueError(
            "its header does not state the number of samples, probably because it was written to a pipe: encode it "
            "again, to a file"
        )
    return recording


def make_supervision(
    recording: Recording, text: str, language: LanguageCode, speaker: str | None, gender: str | None = None
) -> SupervisionSegment:
    """Return a supervision of a whole recording, with the id of the recording and all of its channels."""
    return SupervisionSegment(
        id=recording.id,
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=recording.channel_ids if recording.num_channels > 1 else 0,
        text=text,
        language=language,
        speaker=speaker,
        gender=gender,
    )


def _check_channels(path: Path) -> None:
    """Raise ValueError for audio without channels: libsox, which Lhotse may try, ends the process by a division."""
    with suppress(soundfile.LibsndfileError):  # other formats, and damage that other libraries may accept
        soundfile.info(path)
        return
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    position = head.find(b"fmt ")
    if head.startswith((b"RIFF", b"RIFX", b"RF64")) and position > 0 and head[position + 10 : position + 12] == b"\0\0":
        raise ValueError("its header states no channels: it is damaged")
