"""Reading the audio of cuts piece by piece."""

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording

from icefall_pathways.decoding import cut_audio
from icefall_pathways.decoding.cut_audio import load_samples, read_pieces
from icefall_pathways.decoding.streaming import AudioError

PIECE = 5120


def _samples(seconds, channels=1):
    """Tones that swell and slide, so that a decoder's memory matters."""
    time = np.arange(int(16000 * seconds)) / 16000
    tones = [np.sin(2 * np.pi * (200 + 40 * k) * time * (1 + 0.05 * np.sin(time))) for k in range(channels)]
    return (0.3 * np.abs(np.sin(1.7 * time))[:, None] * np.stack(tones, axis=1)).astype(np.float32)


def _cut(path, start=0.0, duration=None, **audio):
    packed = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".ogg": {"format": "OGG", "subtype": "VORBIS"}}
    soundfile.write(path, _samples(seconds=9.3, **audio), 16000, **packed.get(path.suffix, {}))
    recording = Recording.from_file(path)
    return MonoCut("cut", start, duration or recording.duration - start, 0, recording=recording)


@pytest.fixture
def largest_read(monkeypatch):
    """Frames that were asked of libsndfile at a time."""
    asked, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda file, frames=-1, **how: (asked.append(frames), read(file, frames, **how))[1]
    )
    return asked


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", [".flac", ".opus", ".ogg", ".wav"])
@pytest.mark.parametrize(("start", "duration"), [(0.0, None), (2.34, 4.567)])
def test_pieces_are_the_samples_of_the_whole(tmp_path, largest_read, suffix, channels, start, duration):
    cut = _cut(tmp_path / f"a{suffix}", start, duration, channels=channels)
    expected = load_samples(cut)
    largest_read.clear()
    pieces = list(read_pieces(cut, PIECE))
    assert max(largest_read) == PIECE and min(largest_read) > 0
    assert [piece.numel() for piece in pieces[:-1]] == [PIECE] * (len(pieces) - 1)
    assert torch.equal(torch.cat(pieces), expected)
    assert expected.numel() == cut.num_samples


def test_what_is_resampled_or_packed_is_read_whole(tmp_path):
    path = tmp_path / "a.opus"
    whole = _cut(path)
    resampled = MonoCut("cut", 0.0, 9.3, 0, recording=whole.recording.resample(8000))
    in_memory = MonoCut("cut", 1.0, 2.0, 0, recording=Recording.from_bytes(path.read_bytes(), "a"))
    for cut in (resampled, in_memory):
        assert torch.equal(torch.cat(list(read_pieces(cut, PIECE))), load_samples(cut))


def test_without_libsndfile_lhotse_reads(tmp_path, monkeypatch):
    cut = _cut(tmp_path / "a.flac")
    expected = load_samples(cut)

    def fail(path):
        raise soundfile.LibsndfileError(1)

    monkeypatch.setattr(cut_audio.soundfile, "SoundFile", fail)
    monkeypatch.setattr(cut_audio, "load_samples", lambda _: expected)
    assert torch.equal(torch.cat(list(read_pieces(cut, PIECE))), expected)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    cut = _cut(tmp_path / "a.wav")
    (tmp_path / "a.wav").unlink()
    (tmp_path / "a.wav").symlink_to("/dev/null")
    with pytest.raises(AudioError, match=r"a\.wav, which is not a regular file"):
        next(read_pieces(cut, PIECE))


def test_a_file_that_is_shorter_than_it_was(tmp_path):
    cut = _cut(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", _samples(3.0), 16000)
    heard, pieces = 0, read_pieces(cut, PIECE)
    with pytest.raises(AudioError, match=r"cannot read its audio: it ends 6\.30 s before its manifest says"):
        for piece in pieces:
            heard += piece.numel()
    assert heard == 48000
    (tmp_path / "a.wav").unlink()
    with pytest.raises(AudioError, match="cannot read its audio"):
        next(read_pieces(cut, PIECE))
