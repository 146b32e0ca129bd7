"""Feeders: from the bytes of a client to the samples of its stream."""

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Protocol

from torch import Tensor

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.serve.audio import PcmDecoder, Pipe
from icefall_pathways.serve.protocol import AudioFormat
from icefall_pathways.serve.streams import ClientStream
from icefall_pathways.transcription.audio import AudioOptions, read_pipe
from icefall_pathways.transcription.resampling import narrowband_note

_log = logging.getLogger(__name__)


class Feeder(Protocol):
    """Passes the audio of a client to a stream. Errors of the audio end the stream with a message."""

    async def accept(self, data: bytes) -> None:
        """Append bytes, after waiting for space in the buffers."""

    async def finish(self) -> None:
        """End the audio; the stream ends after the last samples."""

    def close(self) -> None:
        """Release the resources of the feeder, also before the end of the audio."""


class PcmFeeder:
    """Feed PCM samples.

    Args:
      stream: The stream.
      audio_format: Encoding of the samples.
      sample_rate: Sample rate in Hz.

    Raises:
      AudioError: The sample rate is out of range.
    """

    def __init__(self, stream: ClientStream, audio_format: AudioFormat, sample_rate: int) -> None:
        self._stream = stream
        self._decoder = PcmDecoder(audio_format, sample_rate)
        if (note := narrowband_note(sample_rate, stream.model.covers_narrowband)) is not None:
            stream.notes.append(note)

    async def accept(self, data: bytes) -> None:
        """Append bytes; see `Feeder`."""
        await self._feed(lambda: self._decoder.accept(data))

    async def finish(self) -> None:
        """End the audio; see `Feeder`."""
        await self._feed(self._decoder.flush)
        self._stream.finish()

    async def _feed(self, decode: Callable[[], Tensor]) -> None:
        try:
            samples = decode()
        except AudioError as error:
            self._stream.fail("invalid_audio", str(error))
            return
        await self._stream.feed(samples)

    def close(self) -> None:
        """Do nothing."""


class ContainerFeeder:
    """Feed a container, which FFmpeg decodes on a thread while it arrives.

    Args:
      stream: The stream.
      executor: Provides the thread.
    """

    def __init__(self, stream: ClientStream, executor: Executor) -> None:
        self._pipe = Pipe()
        blocks = read_pipe(io.BufferedReader(self._pipe), audio_options(stream))
        self._decoding = asyncio.ensure_future(feed_blocks(stream, blocks, executor))

    async def accept(self, data: bytes) -> None:
        """Append bytes; see `Feeder`."""
        await self._pipe.put(data)

    async def finish(self) -> None:
        """End the audio; see `Feeder`."""
        self._pipe.end()
        await self._decoding

    def close(self) -> None:
        """End the thread."""
        self._pipe.end()


def audio_options(stream: ClientStream) -> AudioOptions:
    """Return the options to read the audio of a stream with: remarks go to its notes."""
    return AudioOptions(on_note=stream.notes.append, covers_narrowband=stream.model.covers_narrowband)


async def feed_blocks(stream: ClientStream, blocks: Iterator[Tensor], executor: Executor) -> None:
    """Feed blocks of samples (n,) that are read on a thread, then end the stream."""
    loop = asyncio.get_running_loop()

    def run() -> None:
        for samples in blocks:
            if stream.closed:
                return
            asyncio.run_coroutine_threadsafe(stream.feed(samples), loop).result()
            if stream.input_ended:
                return

    try:
        await loop.run_in_executor(executor, run)
    except AudioError as error:
        stream.fail("invalid_audio", str(error))
    except OSError as error:  # of a temporary file, for formats that need seeking
        _log.error("cannot store the audio of a client (%s): free space in the temporary folder", error)
        stream.fail("internal", f"the server cannot store the audio ({error.strerror or error}): try again later")
    except Exception as error:
        _log.exception("cannot decode a container")
        stream.fail("internal", f"the server cannot decode the audio ({type(error).__name__})")
    stream.finish()
