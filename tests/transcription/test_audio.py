"""Audio input: complete files, pipes and microphones."""

import io
import os
import struct
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from encoded_audio import FORMATS, LOSSLESS, SlowPipe, encode, read_all, speech_like

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.audio import AudioOptions, _join_blocks, as_mono, read_audio, read_file, read_pipe

RAW_16K = AudioOptions(sample_rate=16000)


def _read_file(tmp_path, data, name="audio", **options):
    (tmp_path / name).write_bytes(data)
    samples, error = read_all(read_file(tmp_path / name, AudioOptions(**options)))
    assert error is None
    return samples


def _read_pipe(data, options=None, step=4096):
    samples, error = read_all(read_pipe(io.BufferedReader(SlowPipe(data, step)), options or AudioOptions()))
    assert error is None
    return samples


@pytest.mark.parametrize("name", FORMATS)
def test_files_and_pipes_of_all_formats_are_read_completely(tmp_path, name):
    data = encode(speech_like(2.0), name)
    from_file, from_pipe = _read_file(tmp_path, data), _read_pipe(data)
    # Lossy codecs pad the audio to whole frames.
    assert 32000 <= len(from_file) <= (32000 if name in LOSSLESS else 32000 + 1600)
    assert torch.equal(from_pipe, from_file)
    assert 0.05 < from_file.abs().max() < 1.0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", LOSSLESS)
def test_samples_of_lossless_formats_at_16_khz_are_exact(tmp_path, name, channels):
    samples = speech_like(2.0, 16000, channels)
    data = encode(samples, name, 16000)
    expected = torch.from_numpy(samples[:, 0].astype(np.float32)) / 32768
    for actual in (_read_file(tmp_path, data), _read_pipe(data, step=999)):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_all_encodings_of_wav(tmp_path, subtype, form):
    signal, encoded = speech_like(1.0, 16000, channels=2) / 32768, io.BytesIO()
    soundfile.write(encoded, signal, 16000, subtype=subtype, format=form)
    expected = soundfile.read(io.BytesIO(encoded.getvalue()), dtype="float32")[0][:, 0]
    for actual in (_read_file(tmp_path, encoded.getvalue()), _read_pipe(encoded.getvalue())):
        torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_short_blocks_are_joined_in_linear_time(monkeypatch):
    calls = 0
    length = torch.Tensor.__len__

    def counted(tensor):
        nonlocal calls
        calls += 1
        return length(tensor)

    monkeypatch.setattr(torch.Tensor, "__len__", counted)
    assert list(map(length, _join_blocks(torch.zeros(1) for _ in range(3000)))) == [2560, 440]
    assert calls <= 3 * 3000


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "m4a"])
def test_other_rates_are_resampled(tmp_path, name, rate):
    original = torch.from_numpy(speech_like(2.0, 16000)[:, 0] / 32768).float()
    samples = _read_file(tmp_path, encode(speech_like(2.0, rate), name, rate))
    assert len(samples) == pytest.approx(32000, abs=0 if name in LOSSLESS else 3000)
    assert samples.std() == pytest.approx(float(original.std()), rel=0.1)


def test_mp3_is_the_same_as_other_decoders_read_it(tmp_path):
    data = encode(speech_like(5.0, 16000), "mp3", 16000)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    samples = _read_file(tmp_path, data).numpy()
    lag = int(np.correlate(samples[:20000], expected[5000:15000], "valid").argmax()) - 5000
    overlap = samples[10000 + lag : 70000 + lag]
    assert np.abs(overlap - expected[10000 : 10000 + len(overlap)]).max() < 1e-3


def test_mp3_of_variable_bit_rate_without_a_header_is_read_completely(tmp_path):
    silence = np.zeros((48000 * 10, 1), np.int16)  # frames of low bit rate, then frames of high bit rate
    data = encode(np.concatenate([silence, speech_like(10.0)]), "mp3", seekable=False, compression_level="9")
    assert b"Xing" not in data
    assert len(_read_file(tmp_path, data)) == pytest.approx(20 * 16000, abs=1600)


@pytest.mark.parametrize("name", ["opus", "ogg", "oga", "mp3", "flac", "aac"])
def test_joined_files_are_read_completely(tmp_path, name):
    data = encode(speech_like(2.0), name) + encode(speech_like(1.0, seed=1), name)
    for samples in (_read_file(tmp_path, data), _read_pipe(data)):
        assert len(samples) == pytest.approx(48000, abs=1600)


def test_joined_mp3_files_of_different_rates(tmp_path):
    data = encode(speech_like(2.0), "mp3") + encode(speech_like(1.0, 16000, channels=2), "mp3", 16000)
    assert len(_read_file(tmp_path, data)) == pytest.approx(48000, abs=2400)


def test_flac_without_a_length_is_read_completely(tmp_path):
    samples = speech_like(4.0, 16000)
    data = encode(samples, "flac", 16000, seekable=False)
    assert torch.equal(_read_file(tmp_path, data), torch.from_numpy(samples[:, 0].astype(np.float32)) / 32768)


@pytest.mark.parametrize("size", [0, 0x7FFFEFFA, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_wav_of_unknown_length_is_read_to_its_end(tmp_path, size):
    data = bytearray(encode(speech_like(1.0, 16000), "wav", 16000))
    position = data.index(b"data") + 4
    data[position : position + 4] = struct.pack("<I", size)
    assert len(_read_file(tmp_path, bytes(data))) == len(_read_pipe(bytes(data))) == 16000


def test_other_files_of_unknown_length_are_read_to_their_end(tmp_path):
    signal = speech_like(2.0)
    aiff = bytearray(encode(signal, "aiff"))
    sizes = aiff.index(b"COMM") + 10, aiff.index(b"SSND") + 4  # those that sox writes to a pipe
    struct.pack_into(">I", aiff, sizes[0], 0x7F000000 // 2)
    struct.pack_into(">I", aiff, sizes[1], 0x7F000008)
    files = {name: encode(signal, name, seekable=False) for name in ("rf64", "avi", "au", "caf")} | {"aiff": aiff}
    for name, data in files.items():
        assert len(_read_file(tmp_path, bytes(data))) == pytest.approx(32000, abs=400), name
        assert len(_read_pipe(bytes(data))) == pytest.approx(32000, abs=400), name


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "ALAC_16"])
def test_caf_with_chunks_that_are_free(tmp_path, subtype):
    """libsndfile leaves space for further chunks; the last packet of ALAC is not full."""
    signal = speech_like(2.0, 16000)
    file = io.BytesIO()
    soundfile.write(file, signal / 32768, 16000, format="CAF", subtype=subtype)
    samples = _read_file(tmp_path, file.getvalue())
    assert len(samples) == 32000
    assert np.abs(samples.numpy() - signal[:, 0] / 32768).max() < 1e-4
    assert torch.equal(_read_pipe(file.getvalue()), samples)


def test_wav_format_without_the_number_of_bits(tmp_path):
    samples = speech_like(1.0, 16000)
    chunks = (
        struct.pack("<4sIHHIIH4sI", b"fmt ", 14, 1, 1, 16000, 32000, 2, b"data", samples.nbytes) + samples.tobytes()
    )
    data = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    expected = torch.from_numpy(samples[:, 0].astype(np.float32)) / 32768
    assert torch.equal(_read_file(tmp_path, data), expected) and torch.equal(_read_pipe(data, step=7), expected)


def test_chunks_around_the_samples_are_not_samples(tmp_path):
    samples = speech_like(1.0, 16000)
    data = encode(samples, "wav", 16000)
    position = data.index(b"data")
    junk = b"JUNK" + struct.pack("<I", 5001) + bytes(5002)
    for step in (7, 4096):
        assert len(_read_pipe(data[:position] + junk + data[position:] + junk, step=step)) == 16000


@pytest.mark.parametrize(
    ("name", "rate", "seconds"), [("wav", 8000, 0.2), ("wav", 16000, 0.2), ("mp3", 48000, 0.5), ("webm", 48000, 0.5)]
)
def test_pipe_is_read_as_it_arrives(name, rate, seconds):
    data = encode(speech_like(10.0, rate), name, rate)
    pipe = SlowPipe(data, step=len(data) // 500)  # 20 ms per read
    first = next(block for block in read_pipe(io.BufferedReader(pipe)) if len(block))
    assert len(first) > 0
    resampling = 0.12 if rate == 8000 else 0.04 if rate == 48000 else 0.0
    assert pipe.delivered / len(data) * 10 <= seconds + resampling


def test_raw_samples_are_read_from_a_slow_pipe():
    signal = speech_like(1.0, 16000)[:, 0]
    for step in (7, 10**6):
        samples = _read_pipe(signal.tobytes(), RAW_16K, step)
        assert torch.equal(samples, torch.from_numpy(signal.astype(np.float32)) / 32768)
    assert _read_pipe(b"", RAW_16K).numel() == 0
    assert len(_read_pipe(b"\x01\x00", RAW_16K)) == 1
    assert len(_read_pipe(signal.tobytes(), AudioOptions(sample_rate=8000))) == 32000


def test_raw_samples_are_read_only_if_requested(monkeypatch):
    for raw in (speech_like(2.0, 16000).tobytes(), bytes(64000)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        samples, error = read_all(read_audio("-"))
        assert (
            samples.numel() == 0
            and "raw 16-bit mono samples can be read from standard input with --sample-rate" in error
        )
    for name in ("wav", "flac", "opus", "m4a", "webm", "aiff", "au"):
        assert len(_read_pipe(encode(speech_like(1.0), name), RAW_16K)) == pytest.approx(16000, abs=1600)
    assert "sample rate of 16 Hz" in read_all(read_pipe(io.BytesIO(bytes(100)), AudioOptions(sample_rate=16)))[1]


@pytest.mark.parametrize("name", ["talk-12:30.wav", "http:x.wav", "concat:a.wav", "-.wav", os.fsdecode(b"caf\xe9.wav")])
def test_file_names_are_only_names(tmp_path, name):
    assert len(_read_file(tmp_path, encode(speech_like(1.0), "wav"), name)) == 16000


def test_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    data = encode(speech_like(1.0), "wav")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    assert len(read_all(read_file(tmp_path / "pipe"))[0]) == 16000
    writer.join()


def test_channels_are_selected_and_reported(tmp_path):
    samples, notes = speech_like(1.0, 16000, channels=2), []
    samples[:, 0] = 0
    data = encode(samples, "wav", 16000)
    expected = torch.from_numpy(samples[:, 1].astype(np.float32)) / 32768
    assert torch.equal(_read_file(tmp_path, data, on_note=notes.append), expected)
    assert notes == ["transcribed channel 1 of 2 (the others are silent or at least 20 dB quieter)"]
    assert not _read_file(tmp_path, data, channel=0).any()
    assert "channel 2 does not exist" in read_all(read_file(tmp_path / "audio", AudioOptions(channel=2)))[1]


def test_array_microphone_is_resampled_and_missing_package_is_reported(monkeypatch):
    class Stream:
        def __init__(self, samplerate, blocksize, dtype, callback):
            assert (samplerate, dtype) == (48000, "float32")
            self.callback = callback

        def __enter__(self):
            for i in range(3):
                block = np.zeros((4800, 64), np.float32)
                block[:, 5] = 0.25 * np.sin(2 * np.pi * 400 * (np.arange(4800) + 4800 * i) / 48000)
                self.callback(block, 4800, None, None)

        def __exit__(self, *_):
            pass

    fake = SimpleNamespace(
        InputStream=Stream, PortAudioError=OSError, query_devices=lambda kind: {"default_samplerate": 48000.0}
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    blocks = read_audio("mic")
    samples = torch.cat([next(blocks) for _ in range(3)])
    assert len(samples) == pytest.approx(4800, abs=800)
    assert samples[100:].abs().max() == pytest.approx(0.25, abs=1e-3)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "install the package sounddevice" in read_all(read_audio("mic"))[1]


def test_integers_are_scaled_and_several_channels_rejected():
    assert torch.equal(as_mono(np.array([[-32768, 16384]], np.int16)), torch.tensor([-1.0, 0.5]))
    with pytest.raises(AudioError, match="expected mono"):
        as_mono(np.zeros((2, 100)))
