"""The decoding thread: run the ready chunks of all streams in batches, one per pathway."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from icefall_pathways.decoding.streaming import AudioError, Recognizer, Result, ScoredSamples, score_speech
from icefall_pathways.serve.audio import as_float
from icefall_pathways.serve.load import BatchCost
from icefall_pathways.serve.metrics import Metrics
from icefall_pathways.serve.sessions import SegmentEvent, SpeechEvent, SpeechSession

_INTERVAL = 0.005  # seconds between batches, in which further chunks arrive
_SMOOTHING = 0.5  # weight of the last batch in the load: of many new streams, few are accepted before it rises
_IDLE_SECONDS = 1.0  # after which the load is 0

Command = Callable[[SpeechSession], None]
"""A call in the order of the audio: the end of the audio, or a change of the language."""

_log = logging.getLogger(__name__)


@dataclass
class Update:
    """Progress of a stream in a batch.

    Attributes:
      num_samples: Number of samples taken from its inbox.
      events: New events.
      failure: An exception that ended the stream.
      finished: The last event of the stream is among `events`.
      decoded_seconds: Seconds of audio decoded since the start of the stream.
    """

    num_samples: int = 0
    events: list[SpeechEvent] = field(default_factory=list)
    failure: Exception | None = None
    finished: bool = False
    decoded_seconds: float = 0.0


class BatchedStream(Protocol):
    """A stream that the batcher decodes.

    Attributes:
      inbox: Audio and commands that the batcher has not taken yet.
      closed: Drop the stream.
    """

    inbox: "deque[Tensor | Command]"
    closed: bool

    @property
    def session(self) -> SpeechSession:
        """Decodes the audio; used on the batcher's thread."""

    def deliver(self, update: Update) -> None:
        """Receive progress; called on the event loop."""


class Batcher:
    """Decode the streams on one thread, which owns all recognizers.

    Args:
      loop: Event loop of the streams; it receives their updates.
      metrics: Metrics of the server.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, metrics: Metrics) -> None:
        self._loop = loop
        self._metrics = metrics
        self._woken: deque[BatchedStream] = deque()
        self._active: dict[BatchedStream, None] = {}  # in order of their activation
        self._wake = threading.Event()
        self._stopping = False
        self._load, self._last_batch = 0.0, 0.0
        self._batch_start: float | None = None  # while a batch runs
        self._chunk_seconds = 1.0
        self._cost = BatchCost()
        self._recent: dict[int, float] = {}  # time of their last batch by the id of the streams of the last second
        metrics.load.set_function(lambda: self.load)  # it falls to 0 when the batches end
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after its current batch, and wait for it."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wake(self, stream: BatchedStream) -> None:
        """Process the inbox of a stream soon."""
        self._woken.append(stream)
        self._wake.set()

    @property
    def load(self) -> float:
        """Duration of recent batches divided by the duration of a chunk; above 1, streams fall back from real time.

        A batch that runs counts as soon as it takes longer than recent ones.
        """
        start, now = self._batch_start, time.monotonic()
        if start is None:
            return self._load if now - self._last_batch < _IDLE_SECONDS else 0.0
        return max(self._load, (now - start) / self._chunk_seconds)

    def expected_load(self, num_more: int) -> float:
        """Return the load if the streams of the last second and `num_more` others have a chunk in the same batch."""
        is_idle = time.monotonic() - self._last_batch >= _IDLE_SECONDS
        num_streams = num_more + (0 if is_idle else len(self._recent))
        return self._cost.predict(num_streams) / self._chunk_seconds

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            try:
                while not self._stopping and self._step():
                    pass
            except Exception as error:  # of the server itself: streams that are opened later are not affected
                _log.exception("all active streams failed")
                self._send({stream: Update(failure=error) for stream in self._active})
                self._active.clear()
                self._batch_start = None

    def _step(self) -> bool:
        """Decode one chunk of every stream that has one, and return whether any had."""
        start = time.monotonic()
        while self._woken:
            self._active[self._woken.popleft()] = None
        self._active = {stream: None for stream in self._active if not stream.closed}
        updates = {stream: Update() for stream in self._active}
        self._batch_start = start if updates else None
        _fill(list(self._active), updates)
        for stream, update in updates.items():
            if update.failure is not None or not stream.session.is_ready:
                del self._active[stream]
        ready = list(self._active)
        self._decode(ready, updates)
        self._send({stream: update for stream, update in updates.items() if update != Update()})
        self._batch_start = None
        if not ready:
            return False
        seconds = time.monotonic() - start
        self._measure(start, seconds, ready)
        time.sleep(max(0.0, _INTERVAL - seconds))
        return True

    def _send(self, updates: dict[BatchedStream, Update]) -> None:
        if updates:
            self._loop.call_soon_threadsafe(_deliver, updates)

    def _decode(self, ready: Sequence[BatchedStream], updates: dict[BatchedStream, Update]) -> None:
        groups: dict[Recognizer, list[BatchedStream]] = {}
        for stream in ready:
            groups.setdefault(stream.session.recognizer, []).append(stream)
        for recognizer, group in groups.items():
            results = self._advance(recognizer, group, updates)
            for stream in group:
                if updates[stream].failure is None:
                    _add_events(stream, results.get(id(stream.session.inner)), updates[stream])
                    self._count_segments(updates[stream].events)
                if updates[stream].finished or updates[stream].failure is not None:
                    del self._active[stream]

    def _advance(
        self, recognizer: Recognizer, group: Sequence[BatchedStream], updates: dict[BatchedStream, Update]
    ) -> dict[int, Result]:
        """Return the new results by the id of their sessions; an exception ends only the stream that causes it."""
        snapshots = [stream.session.save() for stream in group]
        try:
            return {id(inner): result for inner, result in recognizer.advance(s.session.inner for s in group)}
        except Exception as error:
            for snapshot in snapshots:
                SpeechSession.restore(snapshot)
            if len(group) == 1:
                _log.exception("a stream failed")
                updates[group[0]].failure = error
                return {}
        results: dict[int, Result] = {}
        for stream in group:
            results |= self._advance(recognizer, [stream], updates)
        return results

    def _count_segments(self, events: Sequence[SpeechEvent]) -> None:
        for event in events:
            if isinstance(event, SegmentEvent) and event.segment.is_final and event.segment.text:
                self._metrics.segments.labels(event.segment.language or "").inc()

    def _measure(self, start: float, seconds: float, ready: Sequence[BatchedStream]) -> None:
        self._chunk_seconds = min(stream.session.chunk_seconds for stream in ready)
        recent = self._load if start - self._last_batch < _IDLE_SECONDS else 0.0
        self._load = recent + _SMOOTHING * (seconds / self._chunk_seconds - recent)
        self._last_batch = start + seconds
        self._cost.add(len(ready), seconds)
        times = self._recent | dict.fromkeys(map(id, ready), self._last_batch)
        self._recent = {key: time for key, time in times.items() if self._last_batch - time < _IDLE_SECONDS}
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_streams.observe(len(ready))


def _add_events(stream: BatchedStream, result: Result | None, update: Update) -> None:
    with _capture_failure(update):
        update.events += stream.session.events(result)
        update.finished, update.decoded_seconds = stream.session.finished, stream.session.decoded_seconds


def _fill(streams: Sequence[BatchedStream], updates: dict[BatchedStream, Update]) -> None:
    """Move audio from the inboxes of streams to their sessions until these are ready, and run the commands between."""
    filling = list(streams)
    while filling:
        taken: dict[BatchedStream, Tensor] = {}
        for stream in filling:
            with _capture_failure(updates[stream]):
                if (samples := _take(stream)) is not None:
                    taken[stream] = samples
        scored = _score(taken, updates)
        for stream in scored:
            with _capture_failure(updates[stream]):
                updates[stream].num_samples += taken[stream].numel()
                stream.session.accept(taken[stream], scored[stream])
        filling = [stream for stream in scored if updates[stream].failure is None]


@contextmanager
def _capture_failure(update: Update) -> Iterator[None]:
    """Store an exception of the block as the failure that ends the stream, in place of raising it."""
    try:
        yield
    except AudioError as error:
        update.failure = error
    except Exception as error:
        _log.exception("a stream failed")
        update.failure = error


def _score(
    taken: Mapping[BatchedStream, Tensor], updates: dict[BatchedStream, Update]
) -> dict[BatchedStream, ScoredSamples | None]:
    """Detect speech in the next audio of streams in batches; an exception ends only the stream that causes it."""
    try:
        scored = score_speech([stream.session.inner for stream in taken], list(taken.values()))
        return dict(zip(taken, scored, strict=True))
    except Exception as error:
        if len(taken) == 1:
            _log.exception("a stream failed")
            updates[next(iter(taken))].failure = error
            return {}
    parts = [_score({stream: samples}, updates) for stream, samples in taken.items()]
    return {stream: scored for part in parts for stream, scored in part.items()}


def _take(stream: BatchedStream) -> Tensor | None:
    """Run the next commands in the inbox of a stream, and return the audio after them; None if it is not complete."""
    session, inbox = stream.session, stream.inbox
    while inbox and not session.is_ready:
        blocks = _take_blocks(inbox, session.missing_samples())
        if blocks:
            return as_float(torch.cat(blocks))
        command = inbox[0]
        if isinstance(command, Tensor):
            return None  # the chunk is not complete yet
        inbox.popleft()
        command(session)
    return None


def _take_blocks(inbox: "deque[Tensor | Command]", num_samples: int) -> list[Tensor]:
    """Remove and return blocks with at least this many samples, or all blocks before a command; none if more follow.

    Features are computed once per chunk: many short blocks would take much longer.
    """
    items = list(inbox)  # the event loop may append to the inbox meanwhile
    available, count = 0, 0
    for item in items:
        if available >= num_samples or not isinstance(item, Tensor):
            break
        available, count = available + item.numel(), count + 1
    if available < num_samples and count == len(items):
        return []
    return [item for item in (inbox.popleft() for _ in range(count)) if isinstance(item, Tensor)]


def _deliver(updates: dict[BatchedStream, Update]) -> None:
    for stream, update in updates.items():
        stream.deliver(update)
