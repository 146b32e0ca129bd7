"""The streams of clients on the event loop: bounded buffers between their connections and the batcher."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from time import monotonic

from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.serve.batcher import Batcher, Command, Update
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.protocol import ErrorCode, ErrorMessage
from icefall_pathways.serve.recognizers import SpeechModel
from icefall_pathways.serve.sessions import LanguageEvent, SegmentEvent, SpeechEvent, SpeechSession
from icefall_pathways.transcription.audio import split_blocks

_START_SECONDS = 2.0  # in which most clients send the audio of the first chunk
_MAX_EVENTS = 100  # undelivered events after which no more audio is accepted


class ClientStream:
    """One stream of a client.

    Args:
      model: The model, also after the server has loaded another one.
      open_session: Opens the session that decodes the audio.
      batcher: The batcher.
      limits: Limits of the server.
      protocol: Name of the protocol, for metrics.
      language: Code of the requested language; None if it is to be identified.
      on_close: Called once when the stream is closed.

    Attributes:
      language: Code of the newest known language of a result; None if there is none.
      inbox: Audio and commands that the batcher has not taken yet.
      input_ended: No more audio is accepted.
      closed: The client is gone, or all events were delivered: the batcher drops the stream.
      notes: Remarks about the audio, such as a low sample rate.
      error: Reason for the end of the stream before the end of its audio.
      shut_down: The stream ended because the server stops.
      completed: The last result was decoded.
      decoded_seconds: Seconds of audio decoded.
      sending_since: Time from which the connection waits for the client to read; None if it does not.
    """

    def __init__(
        self,
        model: SpeechModel,
        open_session: Callable[[], SpeechSession],
        batcher: Batcher,
        limits: Limits,
        protocol: str,
        language: str | None,
        on_close: Callable[["ClientStream"], None],
    ) -> None:
        self.model, self.protocol = model, protocol
        self.language = language
        self.inbox: deque[Tensor | Command] = deque()
        self.closed = self.shut_down = self.completed = self.input_ended = False
        self.notes: list[str] = []
        self.error: ErrorMessage | None = None
        self.decoded_seconds = 0.0
        self.sending_since: float | None = None
        self._batcher, self._limits, self._on_close = batcher, limits, on_close
        self._open_session = open_session
        self._owner = asyncio.current_task()
        self._capacity = round((limits.max_buffer_seconds + model.window_seconds) * SAMPLE_RATE)
        self._num_samples = self._num_buffered = 0
        self._events: deque[SpeechEvent] = deque()
        self._all_arrived = False
        self._opened = self._last_active = monotonic()
        self._waits_for_space = False
        self._space, self._arrived = asyncio.Event(), asyncio.Event()

    @cached_property
    def session(self) -> SpeechSession:
        """Decodes the audio. Only the batcher's thread may use it: opening it already runs the model."""
        return self._open_session()

    async def feed(self, samples: Tensor) -> None:
        """Append samples (n,) at 16 kHz, after waiting for space in the buffer; ignored after the end of the audio."""
        for block in split_blocks(samples, SAMPLE_RATE):
            await self._wait_for_space()
            if self.input_ended:
                return
            self.touch()
            self._num_samples += block.numel()
            if self._num_samples > self._limits.max_stream_seconds * SAMPLE_RATE:
                limit = f"{self._limits.max_stream_seconds:g} s of audio (--max-stream-seconds)"
                self.fail("limit", f"the stream exceeds {limit}: open another one for more audio")
                return
            self._num_buffered += block.numel()
            self._post(block)

    async def _wait_for_space(self) -> None:
        while not self.input_ended and (self._num_buffered > self._capacity or len(self._events) >= _MAX_EVENTS):
            self._waits_for_space = True
            self._space.clear()
            await self._space.wait()
        self._waits_for_space = False

    def set_language(self, language: str | None) -> None:
        """Decode in another resolved language from the next segment on."""
        if not self.input_ended:
            self._post(lambda session: session.set_language(language))

    def finish(self) -> None:
        """Mark the end of the audio; the events end with the last result."""
        if not self.input_ended:
            self.input_ended = True
            self._space.set()
            self._post(SpeechSession.finish)

    def fail(self, code: ErrorCode, message: str) -> None:
        """Mark the end of the audio because of an error; the events before it are still delivered."""
        if not self.input_ended:
            self.error = ErrorMessage(code=code, message=message)
            self.finish()

    def touch(self) -> None:
        """Note that the client sent a message."""
        self._last_active = monotonic()

    @property
    def is_starting(self) -> bool:
        """The stream was opened a short time ago, and none of its audio has been decoded: no batch shows its cost."""
        return self.decoded_seconds == 0 and monotonic() - self._opened < _START_SECONDS

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last message of the client; 0 while it has to wait for space in the buffer."""
        return 0.0 if self._waits_for_space else monotonic() - self._last_active

    def close(self) -> None:
        """Drop the stream with its undecoded audio."""
        if not self.closed:
            self.closed = self.input_ended = self._all_arrived = True
            self.inbox.clear()
            self._batcher.wake(self)
            self._space.set()
            self._arrived.set()
            self._on_close(self)

    def abort(self, message: str) -> None:
        """Close the stream because of a limit, and cancel the task of its connection with the `ErrorMessage`.

        The task may wait for a client that does not read.
        """
        self.error = self.error or ErrorMessage(code="limit", message=message)
        self.close()
        if self._owner is not None:
            self._owner.cancel(self.error)

    async def events(self) -> AsyncIterator[SpeechEvent]:
        """Yield the events in order, until the last result. A newer partial result replaces one that was not taken."""
        while True:
            while self._events:
                event = self._events.popleft()
                self._space.set()
                self.sending_since = monotonic()
                yield event
            self.sending_since = None
            if self._all_arrived:
                self.sending_since = monotonic()  # the last message, until the stream is closed
                return
            self._arrived.clear()
            await self._arrived.wait()

    def deliver(self, update: Update) -> None:
        """Receive progress from the batcher."""
        self._num_buffered -= update.num_samples
        for event in update.events:
            language = event.language if isinstance(event, LanguageEvent) else event.segment.language
            self.language = language or self.language  # silence does not identify a language
            if self._events and _replaces(event, self._events[-1]):
                self._events.pop()
            self._events.append(event)
        self.decoded_seconds = max(self.decoded_seconds, update.decoded_seconds)
        if update.failure is not None:
            self.error = self.error or _failure_message(update.failure)
            self.input_ended = True
        self.completed |= update.finished
        self._all_arrived |= update.finished or update.failure is not None
        self._space.set()
        self._arrived.set()

    def _post(self, item: Tensor | Command) -> None:
        self.inbox.append(item)
        self._batcher.wake(self)


def _failure_message(failure: Exception) -> ErrorMessage:
    if isinstance(failure, AudioError):
        return ErrorMessage(code="invalid_audio", message=str(failure))
    return ErrorMessage(code="internal", message="an error of the server ended the stream; its log has the cause")


def _replaces(event: SpeechEvent, previous: SpeechEvent) -> bool:
    """Return whether the client does not need `previous` any more: it is a partial result of the same segment."""
    return (
        isinstance(event, SegmentEvent)
        and isinstance(previous, SegmentEvent)
        and event.index == previous.index
        and not previous.segment.is_final
    )
