"""Audio input: complete, truncated and invalid."""

import io
import shutil
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_packages import import_torchaudio

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.audio import read_audio, read_pipe
from icefall_pathways.transcription.resampling import StreamingResampler


def _signal(rate, seconds=1.0, channels=1):
    time = np.arange(int(rate * seconds)) / rate
    mono = 0.3 * np.sin(2 * np.pi * 300 * time) + 0.2 * np.sin(2 * np.pi * 1234 * time)
    return np.stack([mono * (1 + 0.5 * channel) for channel in range(channels)], axis=1).astype(np.float32)


def _read(blocks):
    """Return all samples, and the message of the error after them, if any."""
    samples = [torch.zeros(0)]
    try:
        samples += blocks
    except AudioError as error:
        return torch.cat(samples), str(error)
    return torch.cat(samples), None


def _read_all(blocks):
    samples, error = _read(blocks)
    assert error is None
    return samples


def _middle(samples):
    return samples[200:-200]


@settings(max_examples=25, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 22050, 44100, 48000, 96000, 17003]),
    length=st.integers(0, 5000),
    bounds=st.lists(st.integers(0, 700), max_size=8),
)
def test_streaming_resampling_equals_offline_resampling(rate, length, bounds):
    samples, resampler = torch.randn(length), StreamingResampler(rate, 16000)
    blocks = torch.tensor_split(samples, sorted(min(bound, length) for bound in np.cumsum(bounds).tolist()))
    resampled = torch.cat([*map(resampler.accept, blocks), resampler.flush()])
    assert resampler._samples.numel() < 300
    assert len(resampled) == -(-length * 16000 // rate)
    if length > 0 and rate != 17003:  # torchaudio computes a table of 16000 * 17003 numbers for it
        expected = import_torchaudio().functional.resample(samples, rate, 16000)
        torch.testing.assert_close(resampled, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 1)])
def test_files_of_all_formats_and_rates_are_converted_to_16_khz_mono(tmp_path, name, rate, channels):
    soundfile.write(tmp_path / name, _signal(rate, channels=channels), rate)
    samples = _read_all(read_audio(str(tmp_path / name)))
    expected = torch.from_numpy(_signal(16000, channels=channels).mean(axis=1))
    lossy = name.endswith(("ogg", "mp3"))
    assert len(samples) == pytest.approx(16000, abs=3000 if lossy else 1)  # MP3 adds padding
    if not lossy:
        assert (_middle(samples[:16000]) - _middle(expected)).abs().max() < 5e-3
    assert samples.abs().max() > 0.3


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_wav_is_decoded_from_a_pipe(subtype, form):
    signal, encoded = _signal(16000, channels=2), io.BytesIO()
    soundfile.write(encoded, signal, 16000, subtype=subtype, format=form)
    samples = _read_all(read_pipe(io.BytesIO(encoded.getvalue()), 8000))
    assert (samples - torch.from_numpy(signal.mean(axis=1))).abs().max() < (0.02 if subtype == "PCM_U8" else 1e-3)


class _SlowPipe(io.RawIOBase):
    """A pipe that delivers a few bytes per read."""

    def __init__(self, data, step=7):
        self.source, self.step = io.BytesIO(data), step

    def readable(self):
        return True

    def read(self, size=-1):
        return self.source.read(min(size, self.step))


def test_raw_samples_are_decoded_from_a_slow_pipe():
    signal = _signal(8000)[:, 0]
    raw = (signal * 32767).astype("<i2").tobytes()
    for step in (7, 10**6):
        samples = _read_all(read_pipe(_SlowPipe(raw, step), 8000))
        expected = import_torchaudio().functional.resample(torch.from_numpy(signal), 8000, 16000)
        assert (samples - expected).abs().max() < 1e-3
    assert _read_all(read_pipe(io.BytesIO(b""), 16000)).numel() == 0
    assert len(_read_all(read_pipe(io.BytesIO(b"\x01\x00"), 16000))) == 1


def test_pipe_of_unknown_length_is_read_to_its_end():
    encoded = io.BytesIO()
    soundfile.write(encoded, _signal(16000), 16000, format="WAV", subtype="PCM_16")
    data = bytearray(encoded.getvalue())
    offset = data.index(b"data") + 4
    for unknown in (0, 0xFFFFFFFF):
        data[offset : offset + 4] = struct.pack("<I", unknown)
        assert len(_read_all(read_pipe(io.BytesIO(bytes(data)), 16000))) == 16000


def test_truncated_pipe_is_read_up_to_its_end():
    encoded = io.BytesIO()
    soundfile.write(encoded, _signal(16000), 16000, format="WAV", subtype="PCM_16")
    samples, error = _read(read_pipe(io.BytesIO(encoded.getvalue()[: 44 + 8001]), 16000))
    assert len(samples) == 4000
    assert error == "the audio stopped after 0.25 of 1.00 s"
    samples, error = _read(read_pipe(io.BytesIO(bytes(801)), 16000))
    assert len(samples) == 400
    assert "within a sample" in error
    for length in (5, 20, 40):
        assert "header" in _read(read_pipe(io.BytesIO(encoded.getvalue()[:length]), 16000))[1]


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_truncated_file_is_read_up_to_its_end(tmp_path, name, rate):
    soundfile.write(tmp_path / name, _signal(rate, seconds=4), rate)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    samples, error = _read(read_audio(str(tmp_path / name)))
    assert 16000 < len(samples) < 40000
    assert "truncated or damaged after" in error
    assert "of 4.00 s" in error


def test_input_that_is_not_audio_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio at all " * 100)
    (tmp_path / "headerless.raw").write_bytes(bytes(1000))
    for source, message in {
        "empty.wav": "empty",
        "text.wav": "requires ffmpeg",
        "headerless.raw": "convert the file to WAV",
        "missing.wav": "no such file",
        ".": "not a file",
    }.items():
        samples, error = _read(read_audio(str(tmp_path / source)))
        assert samples.numel() == 0
        assert message in error
    encoded = io.BytesIO()
    soundfile.write(encoded, _signal(16000), 16000, format="FLAC")
    assert "standard input is FLAC" in _read(read_pipe(io.BytesIO(encoded.getvalue()), 16000))[1]
    assert "sample rate of 16 Hz" in _read(read_pipe(io.BytesIO(bytes(100)), 16))[1]


def test_ffmpeg_reads_formats_that_libsndfile_does_not(tmp_path, monkeypatch):
    """Replace ffmpeg by a script that writes PCM samples."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.buffer.write(bytes(3200))\n{{}}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (tmp_path / "film.mkv").write_text("a film")
    text = program.read_text()
    program.write_text(text.format(""))
    assert len(_read_all(read_audio(str(tmp_path / "film.mkv")))) == 1600
    program.write_text(text.format("sys.exit('Invalid data found')"))
    samples, error = _read(read_audio(str(tmp_path / "film.mkv")))
    assert len(samples) == 1600
    assert "Invalid data found" in error


def test_microphone_is_resampled_and_missing_package_is_reported(monkeypatch):
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
    blocks = read_audio("mic")
    samples = torch.cat([next(blocks) for _ in range(3)])
    assert len(samples) == pytest.approx(4800, abs=20)
    assert samples[100:].mean() == pytest.approx(0.25, abs=1e-3)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "install the package sounddevice" in _read(read_audio("mic"))[1]
