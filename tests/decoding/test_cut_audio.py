"""Reading the audio of cuts block by block."""

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording

from icefall_pathways.decoding import cut_audio
from icefall_pathways.decoding.cut_audio import load_samples, read_blocks
from icefall_pathways.decoding.streaming import AudioError

BLOCK = 5120


def _samples(seconds, channels=1):
    """Return tones of varying level and frequency, for which the state of an audio decoder matters."""
    time = np.arange(int(16000 * seconds)) / 16000
    tones = [np.sin(2 * np.pi * (200 + 40 * k) * time * (1 + 0.05 * np.sin(time))) for k in range(channels)]
    return (0.3 * np.abs(np.sin(1.7 * time))[:, None] * np.stack(tones, axis=1)).astype(np.float32)


def _cut(path, start=0.0, duration=None, **audio):
    packed = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".ogg": {"format": "OGG", "subtype": "VORBIS"}}
    soundfile.write(path, _samples(seconds=9.3, **audio), 16000, **packed.get(path.suffix, {}))
    recording = Recording.from_file(path)
    return MonoCut("cut", start, duration or recording.duration - start, 0, recording=recording)


@pytest.fixture
def read_sizes(monkeypatch):
    """Return a list that records the number of frames of each read by libsndfile."""
    requested, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda file, frames=-1, **options: (requested.append(frames), read(file, frames, **options))[1],
    )
    return requested


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".opus", ".ogg", ".wav"])
@pytest.mark.parametrize(("start", "duration"), [(0.0, None), (2.34, 4.567)])
def test_blocks_equal_the_whole_file(tmp_path, read_sizes, suffix, channels, start, duration):
    cut = _cut(tmp_path / f"a{suffix}", start, duration, channels=channels)
    expected = load_samples(cut)
    read_sizes.clear()
    blocks = list(read_blocks(cut, BLOCK))
    assert max(read_sizes) == BLOCK and min(read_sizes) > 0
    assert [block.numel() for block in blocks[:-1]] == [BLOCK] * (len(blocks) - 1)
    assert torch.equal(torch.cat(blocks), expected)
    assert expected.numel() == cut.num_samples


def test_resampled_and_in_memory_recordings_are_read_at_once(tmp_path):
    path = tmp_path / "a.opus"
    whole = _cut(path)
    resampled = MonoCut("cut", 0.0, 9.3, 0, recording=whole.recording.resample(8000))
    in_memory = MonoCut("cut", 1.0, 2.0, 0, recording=Recording.from_bytes(path.read_bytes(), "a"))
    for cut in (resampled, in_memory):
        assert torch.equal(torch.cat(list(read_blocks(cut, BLOCK))), load_samples(cut))


def test_lhotse_reads_files_that_libsndfile_cannot(tmp_path, monkeypatch):
    cut = _cut(tmp_path / "a.flac")
    expected = load_samples(cut)

    def fail(path):
        raise soundfile.LibsndfileError(1)

    monkeypatch.setattr(cut_audio, "SequentialFile", fail)
    monkeypatch.setattr(cut_audio, "load_samples", lambda _: expected)
    assert torch.equal(torch.cat(list(read_blocks(cut, BLOCK))), expected)


def test_a_cut_without_a_recording_is_an_error_that_says_so(tmp_path):
    cut = _cut(tmp_path / "a.wav")
    cut.recording = None
    with pytest.raises(AudioError, match=r"the cut has features but no recording, .*decode the stored features"):
        next(read_blocks(cut, BLOCK))


def test_only_regular_files_are_read(tmp_path):
    cut = _cut(tmp_path / "a.wav")
    (tmp_path / "a.wav").unlink()
    (tmp_path / "a.wav").symlink_to("/dev/null")
    with pytest.raises(AudioError, match=r"a\.wav, which is not a regular file"):
        next(read_blocks(cut, BLOCK))


def test_file_shorter_than_its_manifest_is_an_error(tmp_path):
    cut = _cut(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", _samples(3.0), 16000)
    num_samples, blocks = 0, read_blocks(cut, BLOCK)
    with pytest.raises(AudioError, match=r"cannot read its audio: it is 6\.30 s shorter than its manifest states"):
        for block in blocks:
            num_samples += block.numel()
    assert num_samples == 48000
    (tmp_path / "a.wav").unlink()
    with pytest.raises(AudioError, match="cannot read its audio"):
        next(read_blocks(cut, BLOCK))


@pytest.mark.parametrize("relative", [True, False])
def test_missing_relative_path_error_names_the_folder_of_the_command(tmp_path, monkeypatch, relative):
    cut = _cut(tmp_path / "a.wav")
    (tmp_path / "a.wav").unlink()
    monkeypatch.chdir(tmp_path)
    if relative:
        cut.recording.sources[0].source = "download/a.wav"
    with pytest.raises(AudioError, match=r"cannot read its audio: .*No such file") as error:
        next(read_blocks(cut, BLOCK))
    hint = f"neither in the folder in which prepare.sh ran, nor in this one ({tmp_path}): move the audio together"
    assert (hint in str(error.value)) == relative
