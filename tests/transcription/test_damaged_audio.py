"""Damaged and incomplete audio: the readable part, and one clear error."""

import io
import struct

import numpy as np
import pytest
import soundfile
from encoded_audio import FORMATS, SlowPipe, encode, read_all, speech_like

from icefall_pathways.transcription.audio import AudioOptions, read_audio, read_file, read_pipe
from icefall_pathways.transcription.headers import is_complete_mpegts

# Formats that neither state their length nor mark their end: a cut between two packets cannot be noticed.
WITHOUT_LENGTH = ("aac", "ac3", "ts")


def _read(tmp_path, data):
    """Read a file and a pipe, which must give the same."""
    (tmp_path / "audio").write_bytes(data)
    samples, error = read_all(read_file(tmp_path / "audio"))
    from_pipe, pipe_error = read_all(read_pipe(io.BufferedReader(SlowPipe(data))))
    assert from_pipe.tolist() == samples.tolist() and pipe_error == error
    return samples, error


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in WITHOUT_LENGTH])
def test_truncated_files_are_read_up_to_their_end(tmp_path, name, rate):
    if name in ("opus", "webm"):
        rate = 48000  # the only rate of Opus
    data = encode(speech_like(6.0, rate), name, rate)
    for part in (0.5, 0.9):
        samples, error = _read(tmp_path, data[: int(len(data) * part)])
        assert "truncated" in error
        if name not in ("m4a", "alac"):  # the index is at the end
            # Ogg pages last about a second.
            assert (part - 0.25) * 96000 < len(samples) <= part * 96000 + 3000
            assert "after" in error and (error.endswith("is missing)") or " of 6.0" in error)


@pytest.mark.parametrize("name", WITHOUT_LENGTH)
def test_files_without_a_length_report_an_incomplete_last_packet(tmp_path, name):
    data = encode(speech_like(4.0), name)
    assert _read(tmp_path, data)[1] is None
    for part in np.linspace(0.3, 0.95, 12):
        size = int(len(data) * part)
        size += size % 188 == 0 or size % 384 == 0  # the packets of MPEG-TS and AC-3
        samples, error = _read(tmp_path, data[:size])
        assert error is not None and error.startswith(("truncated or damaged after", "damaged at"))
        assert len(samples) == pytest.approx(part * 64000, abs=6000)


@pytest.mark.parametrize("packet, first", [(188, 0), (192, 4), (204, 0)])
def test_packets_of_mpegts_have_one_of_three_sizes(packet, first):
    data = (bytes(first) + b"\x47").ljust(packet, b"\0") * 10
    assert is_complete_mpegts(data, len(data)) and not is_complete_mpegts(data, len(data) - 1)


@pytest.mark.parametrize("size", [0x7F000000, 0x7FFD0000, 0x80000002, 0x80010000, 0xFFF00000])
def test_truncated_wav_of_gigabytes(tmp_path, size):
    data = bytearray(encode(speech_like(1.0, 16000), "wav", 16000))
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    samples, error = _read(tmp_path, bytes(data))
    assert len(samples) == 16000 and error.startswith(f"truncated or damaged after 1.00 of {size / 32000:.2f} s")


@pytest.mark.parametrize(("missing", "durations"), [(2, "0.9999 of 1.0000"), (1, "0.9999 of 1.0000")])
def test_a_missing_sample_is_visible_in_the_error(tmp_path, missing, durations):
    data = encode(speech_like(1.0, 16000), "wav", 16000)[:-missing]
    samples, error = _read(tmp_path, data)
    assert len(samples) == 15999
    assert error == f"truncated or damaged after {durations} s (shorter than its header states)"


def _voc(samples, size):
    """Return a VOC file with one block of 16-bit samples, which states `size` bytes."""
    head = b"Creative Voice File\x1a" + struct.pack("<HHH", 26, 0x0114, 0x111F)
    comment = b"\x05\x03\0\0ab\0"
    block = struct.pack("<I", 9 | size << 8) + struct.pack("<IBBHI", 16000, 16, 1, 4, 0)
    return head + comment + block + samples.tobytes()


@pytest.mark.parametrize("size", [0, 0xFFFFFF])
def test_voc_that_was_written_to_a_pipe_is_complete(tmp_path, size):
    """Its block states a placeholder, since the size was not known."""
    samples = speech_like(1.0, 16000)
    read, error = _read(tmp_path, _voc(samples, size))
    assert error is None
    assert read.tolist() == (samples[:, 0] / np.float32(32768)).tolist()
    _, error = _read(tmp_path, _voc(samples, 2 * len(samples) + 14))
    assert error == "truncated or damaged after 1.00 s (the end of a block is missing)"


def test_truncated_nist_file(tmp_path):
    file = io.BytesIO()
    soundfile.write(file, speech_like(2.0, 16000), 16000, format="NIST")
    samples, error = _read(tmp_path, file.getvalue()[: 1024 + 32000])
    assert (
        len(samples) == 16000 and error == "truncated or damaged after 1.00 of 2.00 s (shorter than its header states)"
    )


def test_truncated_mp4_with_its_index_at_the_start(tmp_path):
    data = encode(speech_like(6.0), "m4a", movflags="frag_keyframe+empty_moov", frag_duration="500000")
    samples, error = _read(tmp_path, data[: len(data) // 2])
    assert 40000 < len(samples) < 56000 and error is not None


def test_all_samples_before_a_cut_within_a_sample_are_read(tmp_path):
    samples = speech_like(1.0, 16000)
    data = encode(samples, "wav", 16000)
    start = data.index(b"data") + 8
    read, error = _read(tmp_path, data[: start + 8001])
    assert read.tolist() == (samples[:4000, 0] / np.float32(32768)).tolist()
    assert error == "truncated or damaged after 0.25 of 1.00 s (shorter than its header states)"
    raw, error = read_all(read_pipe(io.BytesIO(samples.tobytes()[:801]), AudioOptions(sample_rate=16000)))
    assert len(raw) == 400 and error is None


@pytest.mark.parametrize("name", ["flac", "opus", "ogg", "oga", "mp3", "aac", "ac3", "m4a", "alac", "mkv", "webm"])
def test_damage_in_the_middle_is_skipped_and_reported(tmp_path, name):
    data = bytearray(encode(speech_like(10.0), name))
    data[len(data) // 2 : len(data) // 2 + 800] = bytes(800)
    samples, error = _read(tmp_path, bytes(data))
    assert error.startswith("damaged at ")
    assert 2.0 < float(error.split()[2]) < 6.0
    assert len(samples) == pytest.approx(160000, abs=3200), "the audio after the damage is read, too"


@pytest.mark.parametrize("name", ["flac", "ac3"])
def test_flipped_bit_is_reported_by_codecs_with_checksums(tmp_path, name):
    data = bytearray(encode(speech_like(4.0), name))
    undetected = 0
    for position in range(len(data) // 2, len(data) // 2 + 400, 40):
        flipped = data.copy()
        flipped[position] ^= 1
        undetected += _read(tmp_path, bytes(flipped))[1] is None
    assert undetected == 0


def test_damaged_time_stamps_are_not_filled_with_hours_of_silence(tmp_path):
    data = bytearray(encode(speech_like(0.3), "avi"))
    time_base = data.index(b"auds") + 20
    data[time_base : time_base + 8] = struct.pack("<II", 65539, 125)  # 524 s between frames
    samples, error = _read(tmp_path, bytes(data))
    assert 3000 < len(samples) < 1200 * 16000 and "damaged" in error


def test_many_damages_do_not_block(tmp_path):
    """Thousands of damaged packets, whose messages filled the pipe of an external decoder."""
    data = np.frombuffer(encode(speech_like(10.0), "aac") * 10, np.uint8).copy()
    rng = np.random.default_rng(0)
    data[rng.integers(0, len(data), len(data) // 100)] ^= 0xFF
    (tmp_path / "audio").write_bytes(data.tobytes())
    samples, error = read_all(read_file(tmp_path / "audio"))
    assert len(samples) > 50 * 16000 and "more damages" in error


@pytest.mark.parametrize("name", ["wav", "rf64", "w64", "aiff", "caf", "m4a", "alac"])
def test_second_file_is_not_lost_silently(tmp_path, name):
    data = encode(speech_like(4.0), name)
    samples, error = _read(tmp_path, data + data)
    assert len(samples) == pytest.approx(64000, abs=400)
    assert error == f"another file follows, after {len(samples) / 16000:.2f} s: split or convert the file"


@pytest.mark.parametrize("subtype", ["FLOAT", "ULAW", "IMA_ADPCM"])
def test_second_wav_file_of_other_encodings_is_not_lost_silently(tmp_path, subtype):
    file = io.BytesIO()
    soundfile.write(file, speech_like(20.0, 16000), 16000, format="WAV", subtype=subtype)
    samples, error = _read(tmp_path, file.getvalue() * 2)
    assert len(samples) == pytest.approx(320_000, abs=1000) and error.startswith("another file follows")


def test_samples_after_the_stated_length_are_not_lost_silently(tmp_path):
    """WAV states sizes in 32 bits; those of longer recordings are wrong."""
    data = bytearray(encode(speech_like(2.0, 16000), "wav", 16000))
    position = data.index(b"data") + 4
    data[position : position + 4] = struct.pack("<I", 32000)
    samples, error = _read(tmp_path, bytes(data))
    assert len(samples) == 16000 and error.startswith("more samples follow than its header states, after 1.00 s")


def test_positions_that_no_file_can_have_are_reported_without_a_traceback(tmp_path, capfd):
    data = encode(speech_like(1.0), "caf")
    samples, error = _read(tmp_path, data + b"peak" + struct.pack(">q", 1 << 62) + bytes(20))
    assert len(samples) == 16000 and error is None
    assert capfd.readouterr().err == ""


def test_joined_ogg_files_with_different_channels_are_not_lost_silently(tmp_path):
    data = encode(speech_like(2.0), "opus") + encode(speech_like(1.0, channels=2), "opus")
    samples, error = _read(tmp_path, data)
    assert len(samples) == 32000 and error.startswith("damaged at 2.00 s (FFmpeg cannot read the audio that follows")


def test_input_that_is_not_audio_is_reported(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not audio at all " * 100)
    (tmp_path / "playlist.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nsecret.wav\n")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile secret.wav\n")
    (tmp_path / "secret.wav").write_bytes(encode(speech_like(1.0), "wav"))
    (tmp_path / "locked.wav").symlink_to("locked.wav")
    for source, message in {
        "empty.wav": "it is empty",
        "text.wav": "expected audio or video, such as WAV",
        "playlist.m3u8": "cannot read it",
        "list.txt": "cannot read it",
        "locked.wav": "symbolic links",
        "missing.wav": "no such file",
        "x" * 300: "File name too long",
        ".": "not a file",
    }.items():
        samples, error = read_all(read_audio(str(tmp_path / source)))
        assert samples.numel() == 0
        assert message in error
    assert read_all(read_pipe(io.BytesIO(b"")))[1] == "it is empty"
    no_channels = bytearray(encode(speech_like(0.1, 16000), "wav", 16000))
    no_channels[22] = 0
    assert _read(tmp_path, no_channels)[1] == "it contains no audio that can be decoded (its header is damaged)"


def test_failing_device_is_reported():
    class Failing(SlowPipe):
        def readinto(self, buffer):
            if self.delivered > 100_000:
                raise OSError(5, "Input/output error")
            return super().readinto(buffer)

    samples, error = read_all(read_pipe(io.BufferedReader(Failing(encode(speech_like(4.0), "flac")))))
    assert len(samples) > 8000 and "Input/output error" in error
