"""Where audio comes from: files of any format and rate, standard input, a microphone. All becomes 16 kHz, mono."""

import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import soundfile
import torch
from torch import Tensor

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.pcm import PcmFormat, read_wav_header
from icefall_pathways.transcription.resampling import StreamingResampler

STDIN, MICROPHONE = "-", "mic"

_BLOCK_SECONDS = 0.16  # read at a time; no more than this is held
_RATE = FbankConfig.sample_rate
_PACKED = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3\x03": "MP3", b"ID3\x04": "MP3", b"\x1aE\xdf\xa3": "Matroska or WebM"}


def read_audio(source: str, sample_rate: int = _RATE) -> Iterator[Tensor]:
    """The samples of a source at 16 kHz, channels mixed to one, in [-1, 1], piece by piece as they come.

    Args:
      source: A file; "-" for standard input, which is WAV or raw 16 bit little-endian mono; "mic" for a microphone.
      sample_rate: Of raw samples on standard input.

    Raises:
      AudioError: It cannot be read, or not to its end; what could be read comes before.
    """
    if source == STDIN:
        return read_pipe(sys.stdin.buffer, sample_rate)
    if source == MICROPHONE:
        return _read_microphone()
    return _read_file(Path(source))


def _at_16k(blocks: Iterator[Tensor], sample_rate: int) -> Iterator[Tensor]:
    if sample_rate == _RATE:
        yield from blocks
        return
    resampler = StreamingResampler(sample_rate, _RATE)
    error = None
    try:
        for block in blocks:
            yield resampler.accept(block)
    except AudioError as found:
        error = found
    yield resampler.flush()
    if error is not None:
        raise error


def _read_file(path: Path) -> Iterator[Tensor]:
    if not path.is_file():
        raise AudioError("there is no such file" if not path.exists() else "this is no file")
    if path.stat().st_size == 0:
        raise AudioError("the file is empty")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        if shutil.which("ffmpeg") is None:
            raise AudioError(
                f"cannot read it ({error.error_string}): it is no audio, or damaged, or needs ffmpeg to be installed"
            ) from error
        yield from _read_by_ffmpeg(path)
        return
    with file:
        yield from _at_16k(_blocks_of(file, path), file.samplerate)


def _blocks_of(file: soundfile.SoundFile, path: Path) -> Iterator[Tensor]:
    size, read = max(1, int(_BLOCK_SECONDS * file.samplerate)), 0
    expected = max(file.frames, _announced_frames(path))
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(_cut(read, expected, file.samplerate, error.error_string)) from error
        if len(block) == 0:
            break
        read += len(block)
        yield torch.from_numpy(block.mean(axis=1))
    # Formats without a length announce a huge one.
    if read < expected < 2**40:
        raise AudioError(_cut(read, expected, file.samplerate, "the file is shorter than it says"))


def _announced_frames(path: Path) -> int:
    """Frames that a WAV file's header announces; libsndfile tells those that are there. 0 for other formats."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        try:
            pcm, size = read_wav_header(file)
        except AudioError:  # a kind of WAV that only libsndfile reads
            return 0
    return 0 if size is None else size // pcm.frame_bytes


def _cut(read: int, expected: int, rate: int, reason: str) -> str:
    return f"it was cut or is damaged after {read / rate:.2f} of {expected / rate:.2f} s ({reason})"


def _read_by_ffmpeg(path: Path) -> Iterator[Tensor]:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-f", "s16le", "-ac", "1", "-ar", str(_RATE), "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        yield from _pcm_blocks(process.stdout, PcmFormat(_RATE), None, b"")
        complaint = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0 or complaint:
        raise AudioError(
            f"ffmpeg cannot read it, or not to its end: {complaint.splitlines()[-1] if complaint else '?'}"
        )


def read_pipe(stream: IO[bytes], sample_rate: int) -> Iterator[Tensor]:
    """Samples from a pipe, see `read_audio`; they are handed over as soon as they arrive.

    Raises:
      AudioError: They are packed, or the pipe ends within what its header announces; what came before is given.
    """
    begin = b""
    while len(begin) < 4 and (more := stream.read(4 - len(begin))):
        begin += more
    if begin in _PACKED:
        raise AudioError(
            f"standard input is {_PACKED[begin]}: expected WAV or raw samples; name the file instead, or put "
            "`ffmpeg -i - -f wav -` in between"
        )
    if begin == b"RIFF":
        pcm, size = read_wav_header(stream)
        begin = b""
    else:
        pcm, size = PcmFormat(sample_rate), None
    yield from _at_16k(_pcm_blocks(stream, pcm, size, begin), pcm.sample_rate)


def _pcm_blocks(stream: IO[bytes], pcm: PcmFormat, size: int | None, data: bytes) -> Iterator[Tensor]:
    """Samples of so many bytes (None: up to the end), of which `data` has been read already."""
    read = len(data)
    largest = max(1, int(_BLOCK_SECONDS * pcm.sample_rate)) * pcm.frame_bytes
    # A pipe gives what has arrived, up to the largest block, and does not wait for more.
    take = getattr(stream, "read1", stream.read)
    while size is None or read < size:
        more = take(largest if size is None else min(largest, size - read))
        if not more:
            break
        read += len(more)
        data += more
        whole = len(data) // pcm.frame_bytes * pcm.frame_bytes
        yield pcm.decode(data[:whole])
        data = data[whole:]
    if len(data) >= pcm.frame_bytes:  # where nothing came behind what had been read
        yield pcm.decode(data[: len(data) // pcm.frame_bytes * pcm.frame_bytes])
    if size is not None and read < size:
        seconds = pcm.frame_bytes * pcm.sample_rate
        raise AudioError(f"the audio stopped after {read / seconds:.2f} of {size / seconds:.2f} s")
    if len(data) % pcm.frame_bytes:
        raise AudioError("the audio stopped within a sample; are these raw 16 bit samples, or WAV?")


def _read_microphone() -> Iterator[Tensor]:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, the PortAudio library is not
        raise AudioError(
            f"no microphone ({error}): install the package sounddevice and the library PortAudio, or pipe audio in"
        ) from error
    blocks: queue.Queue[Tensor] = queue.Queue()

    def arrived(samples: Any, _frames: int, _time: Any, _status: Any) -> None:
        blocks.put(torch.from_numpy(samples.mean(axis=1).copy()))

    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
        stream = sounddevice.InputStream(
            samplerate=rate, blocksize=int(_BLOCK_SECONDS * rate), dtype="float32", callback=arrived
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(f"no microphone: {error}") from error

    def until_interrupted() -> Iterator[Tensor]:
        with stream:
            while True:
                yield blocks.get()

    yield from _at_16k(until_interrupted(), rate)
