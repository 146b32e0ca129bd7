"""Audio input: files of any format and rate, samples, standard input and microphones, converted to 16 kHz mono."""

import queue
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.errors import first_line
from icefall_pathways.transcription.byte_source import ByteSource, SeekableByteSource
from icefall_pathways.transcription.channels import Downmixer
from icefall_pathways.transcription.containers import Block, UnknownFormatError, decode
from icefall_pathways.transcription.headers import PcmFormat
from icefall_pathways.transcription.resampling import StreamingResampler, check_sample_rate, narrowband_note

STDIN, MICROPHONE = "-", "mic"

_BLOCK_SECONDS = 0.16  # duration of a block


def _ignore(note: str) -> None:
    pass


@dataclass(frozen=True)
class AudioOptions:
    """Options of audio input.

    Attributes:
      sample_rate: Standard input is raw 16-bit little-endian mono at this rate, in Hz; None: it states its format.
      channel: Channel to read, counted from 0; None: the active ones are averaged.
      on_note: Called with remarks about the audio, such as the channels used or a low sample rate.
      covers_narrowband: The model was also trained on narrowband audio: there is no remark about low sample rates.
    """

    sample_rate: int | None = None
    channel: int | None = None
    on_note: Callable[[str], None] = _ignore
    covers_narrowband: bool = False


def read_audio(source: str, options: AudioOptions = AudioOptions()) -> Iterator[Tensor]:
    """Read a source as blocks of mono samples (n,) at 16 kHz, in [-1, 1], as they arrive.

    Args:
      source: A file; "-" for standard input; "mic" for a microphone.
      options: How to read it.

    Raises:
      AudioError: The source cannot be read completely; the readable part is yielded first.
    """
    if source == MICROPHONE:
        return _convert(_read_microphone(), options)
    return _suggest_raw(_read_standard_input(options) if source == STDIN else read_file(Path(source), options))


def _suggest_raw(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    try:
        yield from blocks
    except UnknownFormatError as error:
        hint = "raw 16-bit mono samples can be read from standard input with --sample-rate"
        raise UnknownFormatError(f"{error}; {hint}") from error


def _read_standard_input(options: AudioOptions) -> Iterator[Tensor]:
    if sys.stdin is None:
        raise AudioError("standard input is closed: connect it to a pipe or a file")
    try:
        yield from read_pipe(sys.stdin.buffer, options)
    except OSError as error:
        raise AudioError(f"cannot read it ({error.strerror or error})") from error


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


def read_samples(samples: Tensor, sample_rate: int, options: AudioOptions = AudioOptions()) -> Iterator[Tensor]:
    """Yield samples (n,) of any rate as blocks at 16 kHz.

    Args:
      samples: The samples.
      sample_rate: Their rate in Hz.
      options: Options; those that select a rate or channel of a file have no effect.

    Raises:
      AudioError: The sample rate is out of range.
    """
    check_sample_rate(sample_rate)
    if (note := narrowband_note(sample_rate, options.covers_narrowband)) is not None:
        options.on_note(note)
    resampler = StreamingResampler(sample_rate, SAMPLE_RATE)
    for block in split_blocks(samples, sample_rate):
        yield resampler.accept(block)
    yield resampler.flush()


def read_file(path: Path, options: AudioOptions = AudioOptions()) -> Iterator[Tensor]:
    """Read a file; see `read_audio`."""
    try:
        with path.open("rb") as file:
            if path.is_fifo():
                yield from read_pipe(file, replace(options, sample_rate=None))
            else:
                yield from _join_blocks(_convert(decode(_open_source(file)), options))
    except FileNotFoundError as error:
        raise AudioError("no such file") from error
    except IsADirectoryError as error:
        raise AudioError("not a file") from error
    except OSError as error:
        raise AudioError(f"cannot read it ({error.strerror or error})") from error


def read_pipe(stream: IO[bytes], options: AudioOptions = AudioOptions()) -> Iterator[Tensor]:
    """Read a pipe, each block as soon as it arrives; see `read_audio`.

    Raises:
      AudioError: The format is unknown, or the pipe ends before the length that its header states; the samples before
        that are yielded first.
    """
    raw = None if options.sample_rate is None else PcmFormat("s16le", options.sample_rate, channels=1)
    source = ByteSource(stream, raw)
    if source.needs_seeking:
        with tempfile.TemporaryFile() as file:
            file.write(source.prefix)
            shutil.copyfileobj(stream, file)
            yield from _convert(decode(SeekableByteSource(file)), options)
    else:
        yield from _convert(decode(source), options)


def _open_source(file: IO[bytes]) -> ByteSource:
    source = ByteSource(file)
    return source if source.is_sequential else SeekableByteSource(file)


def _convert(blocks: Iterator[Block], options: AudioOptions) -> Iterator[Tensor]:
    """Convert decoded blocks to 16 kHz mono."""
    converter = None
    error = None
    notes = set()
    try:
        for block in blocks:
            shape = block.rate, block.samples.shape[1]
            if converter is None or converter.shape != shape:
                if converter is not None:
                    yield converter.flush()
                converter = _Converter(*shape, options)
                note = narrowband_note(block.rate, options.covers_narrowband)
                if note is not None and note not in notes:
                    options.on_note(note)
                    notes.add(note)
            yield converter.accept(block.samples)
    except AudioError as caught:
        error = caught
    if converter is not None:
        yield converter.flush()
    if error is not None:
        raise error


class _Converter:
    """Convert samples of one rate and number of channels to 16 kHz mono."""

    def __init__(self, rate: int, num_channels: int, options: AudioOptions) -> None:
        self.shape = rate, num_channels
        self._downmixer = Downmixer(num_channels, rate, options.channel)
        self._resampler = StreamingResampler(rate, SAMPLE_RATE)
        self._on_note = options.on_note

    def accept(self, samples: Any) -> Tensor:
        """Append samples (n, C), and return the converted samples (m,) that are complete."""
        return self._resampler.accept(torch.from_numpy(self._downmixer.accept(samples)))

    def flush(self) -> Tensor:
        """Return the last samples (m,), and report the channels."""
        last = self._resampler.accept(torch.from_numpy(self._downmixer.flush()))
        if (note := self._downmixer.describe()) is not None:
            self._on_note(note)
        return torch.cat([last, self._resampler.flush()])


def _join_blocks(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Join short blocks, which codecs have, to reduce the number of steps; not for live audio."""
    joined: list[Tensor] = []
    num_samples = 0
    error = None
    try:
        for block in blocks:
            joined.append(block)
            num_samples += len(block)
            if num_samples >= _BLOCK_SECONDS * SAMPLE_RATE:
                yield torch.cat(joined)
                joined, num_samples = [], 0
    except AudioError as caught:
        error = caught
    if joined:
        yield torch.cat(joined)
    if error is not None:
        raise error


def _read_microphone() -> Iterator[Block]:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is installed, PortAudio is not
        raise AudioError(
            f"no microphone ({error}): install the package sounddevice and the library PortAudio, or use a pipe (-)"
        ) from error
    blocks: queue.Queue[Block] = queue.Queue()

    def on_block(samples: Any, _frames: int, _time: Any, _status: Any) -> None:
        blocks.put(Block(rate, samples.copy()))

    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
        stream = sounddevice.InputStream(
            samplerate=rate, blocksize=int(_BLOCK_SECONDS * rate), dtype="float32", callback=on_block
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(f"no microphone: {error}") from error
    with stream:
        while True:
            yield blocks.get()
