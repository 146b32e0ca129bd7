"""Audio input: files of any format and rate, samples, standard input and microphones, converted to 16 kHz mono."""

import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.errors import first_line
from icefall_pathways.transcription.pcm import PcmFormat, check_sample_rate, read_wav_header
from icefall_pathways.transcription.resampling import StreamingResampler

STDIN, MICROPHONE = "-", "mic"

_BLOCK_SECONDS = 0.16  # duration of a block; at most one is buffered
_RATE = FbankConfig.sample_rate
_COMPRESSED = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3\x03": "MP3",
    b"ID3\x04": "MP3",
    b"\x1aE\xdf\xa3": "Matroska or WebM",
}


def read_audio(source: str, sample_rate: int = _RATE) -> Iterator[Tensor]:
    """Read a source as blocks of samples (n,) at 16 kHz, channels averaged, in [-1, 1], as they arrive.

    Args:
      source: A file; "-" for standard input, which is WAV or raw 16-bit little-endian mono; "mic" for a microphone.
      sample_rate: Sample rate of raw samples on standard input, in Hz.

    Raises:
      AudioError: The source cannot be read completely; the readable part is yielded first.
    """
    if source == STDIN:
        return read_pipe(sys.stdin.buffer, sample_rate)
    if source == MICROPHONE:
        return _read_microphone()
    return read_file(Path(source))


def as_mono(samples: Any) -> Tensor:
    """Convert samples to a float tensor (n,); 16-bit and 32-bit integers are scaled to [-1, 1].

    Args:
      samples: A tensor, an array or a sequence of numbers: (n,), (1, n) or (n, 1).

    Raises:
      AudioError: There are several channels, or the type is not supported.
    """
    try:
        if isinstance(samples, Tensor):
            tensor = samples.detach().cpu()
        else:
            array = np.array(samples)
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError) as error:  # strings, nested lists of different lengths, ...
        raise AudioError(f"samples that are not numbers ({first_line(error)}): expected mono samples (n,)") from error
    if tensor.dim() not in (1, 2) or (tensor.dim() == 2 and 1 not in tensor.shape):
        raise AudioError(f"samples of shape {tuple(tensor.shape)}: expected mono (n,); average or select the channels")
    if tensor.dtype in (torch.int16, torch.int32):
        return tensor.flatten().float() / 2.0 ** (torch.iinfo(tensor.dtype).bits - 1)
    if not tensor.is_floating_point() and tensor.numel() > 0:
        raise AudioError(
            f"samples of type {tensor.dtype}: expected floating point in [-1, 1], or 16-bit or 32-bit integers"
        )
    return tensor.flatten().float()


def split_blocks(samples: Tensor, sample_rate: int) -> Iterator[Tensor]:
    """Split samples (n,) into blocks of the duration of those that are read from files."""
    if samples.numel() > 0:
        yield from samples.split(max(1, int(_BLOCK_SECONDS * sample_rate)))


def read_samples(samples: Tensor, sample_rate: int) -> Iterator[Tensor]:
    """Yield samples (n,) of any rate as blocks at 16 kHz.

    Raises:
      AudioError: The sample rate is out of range.
    """
    check_sample_rate(sample_rate)
    yield from _resample(split_blocks(samples, sample_rate), sample_rate)


def _resample(blocks: Iterator[Tensor], sample_rate: int) -> Iterator[Tensor]:
    if sample_rate == _RATE:
        yield from blocks
        return
    resampler = StreamingResampler(sample_rate, _RATE)
    error = None
    try:
        for block in blocks:
            yield resampler.accept(block)
    except AudioError as caught:
        error = caught
    yield resampler.flush()
    if error is not None:
        raise error


def read_file(path: Path) -> Iterator[Tensor]:
    """Read a file; see `read_audio`."""
    if not path.is_file():
        raise AudioError("no such file" if not path.exists() else "not a file")
    if path.stat().st_size == 0:
        raise AudioError("the file is empty")
    try:
        file = soundfile.SoundFile(path)
    except TypeError as error:  # soundfile asks for the format of files named *.raw
        raise AudioError(
            "a file of raw samples, which does not state their format: pass raw 16-bit mono samples on standard input, "
            "with --sample-rate, or convert the file to WAV"
        ) from error
    except soundfile.LibsndfileError as error:
        if shutil.which("ffmpeg") is None:
            raise AudioError(
                f"cannot read it ({error.error_string}): not audio, damaged, or requires ffmpeg; install ffmpeg"
            ) from error
        yield from _read_with_ffmpeg(path)
        return
    with file:
        yield from _resample(_file_blocks(file, path), file.samplerate)


def _file_blocks(file: soundfile.SoundFile, path: Path) -> Iterator[Tensor]:
    size, read = max(1, int(_BLOCK_SECONDS * file.samplerate)), 0
    expected = max(file.frames, _declared_frames(path))
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(_truncation_message(read, expected, file.samplerate, error.error_string)) from error
        if len(block) == 0:
            break
        read += len(block)
        yield torch.from_numpy(block.mean(axis=1))
    # Formats that do not store a length report a huge one.
    if read < expected < 2**40:
        raise AudioError(_truncation_message(read, expected, file.samplerate, "shorter than its header declares"))


def _declared_frames(path: Path) -> int:
    """Return the number of frames that a WAV header declares (libsndfile counts those present); 0 for other formats."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        try:
            pcm, size = read_wav_header(file)
        except AudioError:  # a WAV variant that only libsndfile reads
            return 0
    return 0 if size is None else size // pcm.frame_bytes


def _truncation_message(read: int, expected: int, rate: int, reason: str) -> str:
    return f"truncated or damaged after {read / rate:.2f} of {expected / rate:.2f} s ({reason})"


def _read_with_ffmpeg(path: Path) -> Iterator[Tensor]:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-f", "s16le", "-ac", "1", "-ar", str(_RATE), "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        yield from _pcm_blocks(process.stdout, PcmFormat(_RATE), None, b"")
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0 or message:
        reason = message.splitlines()[-1] if message else f"exit status {process.returncode}"
        raise AudioError(f"ffmpeg cannot read it completely: {reason}")


def read_pipe(stream: IO[bytes], sample_rate: int) -> Iterator[Tensor]:
    """Read samples from a pipe, each block as soon as it arrives; see `read_audio`.

    Raises:
      AudioError: The samples are compressed, or the pipe ends before the length that its header declares; the samples
        before that are yielded first.
    """
    magic = b""
    while len(magic) < 4 and (more := stream.read(4 - len(magic))):
        magic += more
    if magic in _COMPRESSED:
        raise AudioError(
            f"standard input is {_COMPRESSED[magic]}: expected WAV or raw samples; pass the file instead, or pipe it "
            "through `ffmpeg -i - -f wav -`"
        )
    if magic == b"RIFF":
        pcm, size = read_wav_header(stream)
        magic = b""
    else:
        pcm, size = PcmFormat(sample_rate), None
    yield from _resample(_pcm_blocks(stream, pcm, size, magic), pcm.sample_rate)


def _pcm_blocks(stream: IO[bytes], pcm: PcmFormat, size: int | None, data: bytes) -> Iterator[Tensor]:
    """Yield the samples of the next `size` bytes (None: up to the end), of which `data` has already been read."""
    read = len(data)
    block_bytes = max(1, int(_BLOCK_SECONDS * pcm.sample_rate)) * pcm.frame_bytes
    # read1 returns the bytes that have arrived, up to a full block, without waiting for more.
    read_available = getattr(stream, "read1", stream.read)
    while size is None or read < size:
        more = read_available(block_bytes if size is None else min(block_bytes, size - read))
        if not more:
            break
        read += len(more)
        data += more
        whole = len(data) // pcm.frame_bytes * pcm.frame_bytes
        yield pcm.decode(data[:whole])
        data = data[whole:]
    if len(data) >= pcm.frame_bytes:  # no bytes followed the initial `data`
        yield pcm.decode(data[: len(data) // pcm.frame_bytes * pcm.frame_bytes])
    if size is not None and read < size:
        byte_rate = pcm.frame_bytes * pcm.sample_rate
        raise AudioError(f"the audio stopped after {read / byte_rate:.2f} of {size / byte_rate:.2f} s")
    if len(data) % pcm.frame_bytes:
        raise AudioError("the audio stopped within a sample: expected WAV or raw 16-bit samples")


def _read_microphone() -> Iterator[Tensor]:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is installed, PortAudio is not
        raise AudioError(
            f"no microphone ({error}): install the package sounddevice and the library PortAudio, or use a pipe (-)"
        ) from error
    blocks: queue.Queue[Tensor] = queue.Queue()

    def on_block(samples: Any, _frames: int, _time: Any, _status: Any) -> None:
        blocks.put(torch.from_numpy(samples.mean(axis=1).copy()))

    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
        stream = sounddevice.InputStream(
            samplerate=rate, blocksize=int(_BLOCK_SECONDS * rate), dtype="float32", callback=on_block
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(f"no microphone: {error}") from error

    def captured_blocks() -> Iterator[Tensor]:
        with stream:
            while True:
                yield blocks.get()

    yield from _resample(captured_blocks(), rate)
