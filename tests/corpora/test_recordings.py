"""Recordings of audio files."""

import pytest
from encoded_audio import encode, speech_like
from lhotse import Recording

from icefall_pathways.corpora.recordings import read_recording


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_files_are_recordings(tmp_path, name):
    path = tmp_path / f"a.{name}"
    path.write_bytes(encode(speech_like(1.0), name))
    assert read_recording(path, "a") == Recording.from_file(path, recording_id="a")


def test_length_that_the_header_does_not_state_is_an_error(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encode(speech_like(1.0), "flac", seekable=False))
    with pytest.raises(ValueError, match=r"does not state the number of samples, .*written to a pipe: encode it"):
        read_recording(path, "a")


def test_wav_without_channels_is_an_error(tmp_path):
    """Libsox would end the process."""
    data = bytearray(encode(speech_like(1.0), "wav"))
    channels = data.index(b"fmt ") + 10
    data[channels : channels + 2] = bytes(2)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(ValueError, match="states no channels"):
        read_recording(tmp_path / "a.wav", "a")
