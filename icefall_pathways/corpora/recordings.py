"""Recordings of audio files."""

from pathlib import Path

import soundfile
from lhotse import Recording
from lhotse.utils import fastcopy

_UNKNOWN_LENGTH = 1 << 62  # samples; libsndfile reports the largest integer if the header does not state the length
_BLOCK = 1 << 16  # samples


class SequentialFile(soundfile.SoundFile):
    """A file that is read from one position to the end.

    soundfile seeks after every read of a seekable file, which restarts the decoder: MP3 then differs from the samples
    that one read returns, and FLAC without a length in its header loses its last block.
    """

    def seekable(self) -> bool:
        """Return False, so that soundfile does not seek."""
        return False


def read_recording(path: Path, recording_id: str) -> Recording:
    """Return the recording of an audio file.

    Its samples are counted if the header does not state their number, as in FLAC that was written to a pipe.
    """
    recording = Recording.from_file(path, recording_id=recording_id)
    if recording.num_samples < _UNKNOWN_LENGTH:
        return recording
    with SequentialFile(path) as file:
        num_samples = 0
        while block := len(file.read(_BLOCK, dtype="int16")):
            num_samples += block
    return fastcopy(recording, num_samples=num_samples, duration=num_samples / recording.sampling_rate)
