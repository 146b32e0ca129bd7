"""Recordings of audio files."""

from pathlib import Path

from lhotse import Recording

_UNKNOWN_LENGTH = 1 << 62  # samples; libsndfile reports the largest integer


def read_recording(path: Path, recording_id: str) -> Recording:
    """Return the recording of an audio file.

    Raises:
      ValueError: The header does not state the length, without which Lhotse cannot read the file.
    """
    recording = Recording.from_file(path, recording_id=recording_id)
    if recording.num_samples >= _UNKNOWN_LENGTH:
        raise ValueError(
            "its header does not state the number of samples, probably because it was written to a pipe: encode it "
            "again, to a file"
        )
    return recording
