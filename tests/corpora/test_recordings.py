"""Recordings of audio files."""

from encoded_audio import encode, speech_like
from lhotse import Recording

from icefall_pathways.corpora.recordings import SequentialFile, read_recording


def test_length_is_read_from_the_header(tmp_path):
    for name in ("wav", "flac", "mp3", "opus"):
        path = tmp_path / f"a.{name}"
        path.write_bytes(encode(speech_like(1.0, 48000), name, 48000))
        assert read_recording(path, "a") == Recording.from_file(path, recording_id="a")


def test_length_is_counted_if_the_header_does_not_state_it(tmp_path):
    path, samples = tmp_path / "a.flac", speech_like(4.0, 16000)
    path.write_bytes(encode(samples, "flac", 16000, seekable=False))
    recording = read_recording(path, "a")
    assert (recording.num_samples, recording.duration) == (64000, 4.0)
    assert (recording.load_audio()[0] * 32768 == samples[:, 0]).all()
    assert (recording.load_audio(offset=3.0, duration=1.0)[0] * 32768 == samples[48000:, 0]).all()


def test_mp3_read_in_blocks_equals_one_read(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(encode(speech_like(3.0, 16000), "mp3", 16000))
    expected = Recording.from_file(path).load_audio()[0]
    with SequentialFile(path) as file:
        blocks = [file.read(1000, dtype="float32") for _ in range(len(expected) // 1000)]
    assert all((block == expected[1000 * i : 1000 * (i + 1)]).all() for i, block in enumerate(blocks))
