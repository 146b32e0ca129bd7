"""Audio of all kinds, whole and broken."""

import io
import shutil
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.audio import read_audio, read_pipe
from icefall_pathways.transcription.resampling import StreamingResampler


def _signal(rate, seconds=1.0, channels=1):
    time = np.arange(int(rate * seconds)) / rate
    mono = 0.3 * np.sin(2 * np.pi * 300 * time) + 0.2 * np.sin(2 * np.pi * 1234 * time)
    return np.stack([mono * (1 + 0.5 * channel) for channel in range(channels)], axis=1).astype(np.float32)


def _read(pieces):
    """All samples, and the error at their end, if there is one."""
    found = [torch.zeros(0)]
    try:
        found += pieces
    except AudioError as error:
        return torch.cat(found), str(error)
    return torch.cat(found), None


def _whole(pieces):
    samples, error = _read(pieces)
    assert error is None
    return samples


def _middle(samples):
    return samples[200:-200]


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 22050, 44100, 48000, 96000, 17003]),
    length=st.integers(0, 5000),
    cuts=st.lists(st.integers(0, 700), max_size=8),
)
def test_resampling_in_pieces_is_that_of_the_whole(rate, length, cuts):
    samples, resampler = torch.randn(length), StreamingResampler(rate, 16000)
    pieces = torch.tensor_split(samples, sorted(min(cut, length) for cut in np.cumsum(cuts).tolist()))
    found = torch.cat([*map(resampler.accept, pieces), resampler.flush()])
    assert resampler._samples.numel() < 300
    assert len(found) == -(-length * 16000 // rate)
    if length > 0 and rate != 17003:  # torchaudio makes a table of 16000 * 17003 numbers for that
        torch.testing.assert_close(found, torchaudio.functional.resample(samples, rate, 16000), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 1)])
def test_files_of_any_format_and_rate(tmp_path, name, rate, channels):
    soundfile.write(tmp_path / name, _signal(rate, channels=channels), rate)
    samples = _whole(read_audio(str(tmp_path / name)))
    expected = torch.from_numpy(_signal(16000, channels=channels).mean(axis=1))
    lossy = name.endswith(("ogg", "mp3"))
    assert len(samples) == pytest.approx(16000, abs=3000 if lossy else 1)  # MP3 pads
    if not lossy:
        assert (_middle(samples[:16000]) - _middle(expected)).abs().max() < 5e-3
    assert samples.abs().max() > 0.3


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_wav_through_a_pipe(subtype, form):
    signal, packed = _signal(16000, channels=2), io.BytesIO()
    soundfile.write(packed, signal, 16000, subtype=subtype, format=form)
    samples = _whole(read_pipe(io.BytesIO(packed.getvalue()), 8000))
    assert (samples - torch.from_numpy(signal.mean(axis=1))).abs().max() < (0.02 if subtype == "PCM_U8" else 1e-3)


class _Drip(io.RawIOBase):
    """A pipe in which bytes come a few at a time."""

    def __init__(self, data, step=7):
        self.source, self.step = io.BytesIO(data), step

    def readable(self):
        return True

    def read(self, size=-1):
        return self.source.read(min(size, self.step))


def test_raw_samples_through_a_pipe_that_is_slow():
    signal = _signal(8000)[:, 0]
    raw = (signal * 32767).astype("<i2").tobytes()
    for step in (7, 10**6):
        samples = _whole(read_pipe(_Drip(raw, step), 8000))
        expected = torchaudio.functional.resample(torch.from_numpy(signal), 8000, 16000)
        assert (samples - expected).abs().max() < 1e-3
    assert _whole(read_pipe(io.BytesIO(b""), 16000)).numel() == 0
    assert len(_whole(read_pipe(io.BytesIO(b"\x01\x00"), 16000))) == 1


def test_a_pipe_without_known_length_is_read_to_its_end():
    packed = io.BytesIO()
    soundfile.write(packed, _signal(16000), 16000, format="WAV", subtype="PCM_16")
    data = bytearray(packed.getvalue())
    place = data.index(b"data") + 4
    for unknown in (0, 0xFFFFFFFF):
        data[place : place + 4] = struct.pack("<I", unknown)
        assert len(_whole(read_pipe(io.BytesIO(bytes(data)), 16000))) == 16000


def test_a_pipe_that_stops():
    packed = io.BytesIO()
    soundfile.write(packed, _signal(16000), 16000, format="WAV", subtype="PCM_16")
    samples, error = _read(read_pipe(io.BytesIO(packed.getvalue()[: 44 + 8001]), 16000))
    assert len(samples) == 4000
    assert error == "the audio stopped after 0.25 of 1.00 s"
    samples, error = _read(read_pipe(io.BytesIO(bytes(801)), 16000))
    assert len(samples) == 400
    assert "within a sample" in error
    for length in (5, 20, 40):
        assert "header" in _read(read_pipe(io.BytesIO(packed.getvalue()[:length]), 16000))[1]


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_cut_file_is_read_as_far_as_it_goes(tmp_path, name, rate):
    soundfile.write(tmp_path / name, _signal(rate, seconds=4), rate)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    samples, error = _read(read_audio(str(tmp_path / name)))
    assert 16000 < len(samples) < 40000
    assert "cut or is damaged after" in error
    assert "of 4.00 s" in error


def test_what_is_no_audio(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no audio at all " * 100)
    for source, message in {
        "empty.wav": "empty",
        "text.wav": "needs ffmpeg",
        "missing.wav": "no such file",
        ".": "no file",
    }.items():
        samples, error = _read(read_audio(str(tmp_path / source)))
        assert samples.numel() == 0
        assert message in error
    packed = io.BytesIO()
    soundfile.write(packed, _signal(16000), 16000, format="FLAC")
    assert "standard input is FLAC" in _read(read_pipe(io.BytesIO(packed.getvalue()), 16000))[1]
    assert "sample rate of 16 Hz" in _read(read_pipe(io.BytesIO(bytes(100)), 16))[1]


def test_ffmpeg_reads_what_libsndfile_does_not(tmp_path, monkeypatch):
    """With a program in its place that writes what ffmpeg would."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.buffer.write(bytes(3200))\n{{}}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (tmp_path / "film.mkv").write_text("a film")
    text = program.read_text()
    program.write_text(text.format(""))
    assert len(_whole(read_audio(str(tmp_path / "film.mkv")))) == 1600
    program.write_text(text.format("sys.exit('Invalid data found')"))
    samples, error = _read(read_audio(str(tmp_path / "film.mkv")))
    assert len(samples) == 1600
    assert "Invalid data found" in error


def test_microphone(monkeypatch):
    class Stream:
        def __init__(self, samplerate, blocksize, dtype, callback):
            assert (samplerate, dtype) == (48000, "float32")
            self.callback = callback

        def __enter__(self):
            for _ in range(3):
                self.callback(np.full((4800, 2), 0.25, np.float32), 4800, None, None)

        def __exit__(self, *_):
            pass

    fake = SimpleNamespace(
        InputStream=Stream, PortAudioError=OSError, query_devices=lambda kind: {"default_samplerate": 48000.0}
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    pieces = read_audio("mic")
    heard = torch.cat([next(pieces) for _ in range(3)])
    assert len(heard) == pytest.approx(4800, abs=20)
    assert heard[100:].mean() == pytest.approx(0.25, abs=1e-3)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "install the package sounddevice" in _read(read_audio("mic"))[1]
