"""The Wyoming protocol of Home Assistant, on a port of its own.

A client sends `Transcribe` with a language, then `AudioStart`, `AudioChunk` events and `AudioStop`; the server answers
with one `Transcript` of all the audio. `Describe` is answered with `Info`. The protocol has no access control.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TypeVar

from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioFormat, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_read_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.server import AsyncEventHandler, AsyncTcpServer

from icefall_pathways.serve.connections import REFUSALS, refusal
from icefall_pathways.serve.feeders import PcmFeeder
from icefall_pathways.serve.protocol import ErrorMessage, ProtocolError
from icefall_pathways.serve.service import Service
from icefall_pathways.serve.sessions import SegmentEvent
from icefall_pathways.serve.streams import ClientStream

_log = logging.getLogger(__name__)

_SAMPLE_BYTES = 2
_MALFORMED = (AttributeError, KeyError, TypeError)  # of wyoming's parsers: missing fields, or wrong types

_Parsed = TypeVar("_Parsed", Transcribe, AudioStart, AudioChunk)


async def start_wyoming(service: Service, host: str, port: int) -> AsyncTcpServer:
    """Start to serve the protocol.

    Raises:
      OSError: The address is in use or not available.
    """
    server = AsyncTcpServer(host, port)
    try:
        await server.start(partial(_Connection, service))
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --wyoming-port") from error
    return server


class _Connection(AsyncEventHandler):
    """One connection, with one stream at a time.

    Args:
      service: The service.
      reader: Bytes of the client.
      writer: Bytes for the client.
    """

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(_BoundedReader(reader, service), writer)
        self._service = service
        self._language: str | None = None
        self._utterance: _Utterance | None = None

    async def run(self) -> None:
        """Serve the connection until its end; the base class would raise exceptions of malformed events."""
        try:
            while (event := await self._read()) is not None and await self.handle_event(event):
                pass
        except (OSError, asyncio.CancelledError):  # the client is gone
            pass
        finally:
            await self.disconnect()
            self.writer.close()

    async def _read(self) -> Event | None:
        try:
            return await async_read_event(self.reader)
        except (*_MALFORMED, RecursionError):
            return None

    async def handle_event(self, event: Event) -> bool:
        """Process an event; return whether the connection stays open."""
        try:
            await self._process(event)
        except REFUSALS as error:
            await self._fail(refusal(error))
            return False
        except OSError:
            raise
        except Exception as error:
            _log.exception("a stream failed")
            message = f"the server cannot process the event ({type(error).__name__})"
            await self._fail(ErrorMessage(code="internal", message=message))
            return False
        return True

    async def _process(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self.write_event(_describe(self._service).event())
        elif Transcribe.is_type(event.type):
            self._language = _parse_language(event)
        elif AudioStart.is_type(event.type):
            self._open(_parse(AudioStart, event))
        elif AudioChunk.is_type(event.type):
            await self._current(event).accept(_parse(AudioChunk, event))
        elif AudioStop.is_type(event.type):
            await self._current(event).finish()
            self._utterance = None

    def _current(self, event: Event) -> "_Utterance":
        if self._utterance is None:
            raise ProtocolError(f"event {event.type} without audio-start: send audio-start first")
        return self._utterance

    def _open(self, audio: AudioStart) -> None:
        if self._utterance is not None:
            raise ProtocolError("event audio-start within other audio: send audio-stop first")
        if not isinstance(audio.rate, int):
            raise ProtocolError(f"event audio-start with rate {audio.rate!r}: expected a whole number of Hz")
        stream = self._service.open_stream("wyoming", self._language)
        try:
            self._utterance = _Utterance(stream, audio, partial(self._send_transcript, stream))
        except BaseException:
            stream.close()
            raise

    async def _send_transcript(self, stream: ClientStream) -> None:
        """Send the transcript at the end of the stream, or its error."""
        segments = [event.segment async for event in stream.events() if isinstance(event, SegmentEvent)]
        texts = [segment.text for segment in segments if segment.is_final and segment.text]
        if stream.error is not None:
            await self._fail(stream.error)
            self.writer.close()  # clients wait for a transcript until then
        elif not stream.closed:
            await self.write_event(Transcript(" ".join(texts), language=stream.language).event())
        stream.close()

    async def _fail(self, message: ErrorMessage) -> None:
        await self.write_event(Error(message.message, message.code).event())

    async def disconnect(self) -> None:
        """Drop the stream of a client that is gone."""
        if self._utterance is not None:
            await self._utterance.drop()


class _Utterance:
    """The audio between `AudioStart` and `AudioStop`.

    Args:
      stream: Its stream.
      audio: Its format.
      answer: Sends the transcript at the end of the stream.

    Raises:
      ProtocolError: The format is not supported.
      AudioError: The sample rate is out of range.
    """

    def __init__(
        self, stream: ClientStream, audio: AudioStart, answer: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        self._stream, self._rate = stream, audio.rate
        self._check(audio)
        self._feeder = PcmFeeder(stream, "pcm_s16le", audio.rate)
        self._answer = asyncio.create_task(answer())

    def _check(self, audio: AudioFormat) -> None:
        actual, expected = (audio.rate, audio.width, audio.channels), (self._rate, _SAMPLE_BYTES, 1)
        if actual != expected:
            raise ProtocolError(f"audio of rate, width and channels {actual}: expected {expected}")

    async def accept(self, chunk: AudioChunk) -> None:
        """Append samples."""
        self._check(chunk)
        await self._feeder.accept(chunk.audio)

    async def finish(self) -> None:
        """End the audio, and wait until the transcript is sent."""
        await self._feeder.finish()
        await self._answer

    async def drop(self) -> None:
        """Drop the audio."""
        self._stream.close()
        self._answer.cancel()
        await asyncio.gather(self._answer, return_exceptions=True)


class _BoundedReader:
    """Bytes of a client, with limits on the size of events and the time between them.

    wyoming ends a connection after a `ValueError`.

    Args:
      reader: The bytes.
      service: The service, which has the limits.
    """

    def __init__(self, reader: asyncio.StreamReader, service: Service) -> None:
        self._reader = reader
        self._limits = service.limits

    async def readline(self) -> bytes:
        """Read the header of an event; an empty line is the end."""
        return await self._within_timeout(self._reader.readline())

    async def readexactly(self, size: int) -> bytes:
        """Read a part of an event."""
        if size > self._limits.max_message_bytes:
            raise ValueError(f"{size} bytes: expected at most {self._limits.max_message_bytes} (--max-message-bytes)")
        return await self._within_timeout(self._reader.readexactly(size))

    async def _within_timeout(self, reading: Coroutine[None, None, bytes]) -> bytes:
        try:
            return await asyncio.wait_for(reading, 2 * self._limits.idle_timeout)  # an open stream ends before
        except (asyncio.TimeoutError, EOFError) as error:
            raise ValueError("the event is not complete") from error

    def feed_eof(self) -> None:
        """Mark the end."""
        self._reader.feed_eof()


def _parse(kind: type[_Parsed], event: Event) -> _Parsed:
    """Return an event as one of wyoming's classes.

    Raises:
      ProtocolError: A field is missing or has a wrong type.
    """
    try:
        return kind.from_event(event)
    except _MALFORMED as error:
        raise ProtocolError(f"event {event.type}: {type(error).__name__} {error}; see the Wyoming protocol") from error


def _parse_language(event: Event) -> str | None:
    """Return the language of a transcribe event.

    Raises:
      ProtocolError: It is not a string, which wyoming does not check.
    """
    language: object = _parse(Transcribe, event).language
    if language is None or isinstance(language, str):
        return language
    raise ProtocolError(f"event {event.type} with language {language!r}: expected a string, such as fr or auto")


def _describe(service: Service) -> Info:
    """Return the description of the server that Home Assistant shows."""
    model = service.model
    common = {"attribution": Attribution("icefall_pathways", ""), "installed": True, "version": None}
    description = "Streaming multilingual speech recognition"
    asr_model = AsrModel(name=model.name, description=model.name, languages=model.languages, **common)
    program = AsrProgram(name="icefall_pathways", description=description, models=[asr_model], **common)
    return Info(asr=[program])
