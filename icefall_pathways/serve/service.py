"""The service that all protocols share: admission of streams, their supervision, and the end of the server."""

import asyncio
import hmac
import logging
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from time import monotonic

from icefall_pathways.serve.batcher import Batcher
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.metrics import Metrics
from icefall_pathways.serve.recognizers import RequestError, SpeechModel
from icefall_pathways.serve.sessions import SpeechSession
from icefall_pathways.serve.streams import ClientStream

_log = logging.getLogger(__name__)

_SUPERVISION_SECONDS = 0.5
_ABANDONED = 10  # idle timeouts after which a stream that was ended is dropped
_MAX_PRINTED_NOTES = 100
FILE_PROTOCOL = "http"
"""Protocol of streams whose client needs the result of the whole audio."""


class BusyError(Exception):
    """The server accepts no further stream at present."""


class Service:
    """State of the server on its event loop.

    Args:
      model: The model.
      config: The options.
    """

    def __init__(self, model: SpeechModel, config: ServeConfig) -> None:
        self.model = model
        self.config = config
        self.limits = config.limits
        self.metrics = Metrics()
        self.draining = False
        self._container_threads = ThreadPoolExecutor(config.limits.max_containers, "container")
        self._container_streams: set[ClientStream] = set()
        self.streams: set[ClientStream] = set()
        self._token = config.read_token()
        self._batcher = Batcher(asyncio.get_running_loop(), self.metrics)
        self._supervision: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._is_outdated = False
        self._printed_notes: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Start decoding."""
        self._batcher.start()
        self._supervision = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Close all streams and stop decoding."""
        for task in (self._supervision, self._reloading):
            if task is not None:
                task.cancel()
        for stream in list(self.streams):
            stream.close()
        await asyncio.to_thread(self._batcher.stop)
        self._container_threads.shutdown(wait=False)

    async def drain(self) -> None:
        """End the audio of live streams, and wait until all clients have the final results."""
        self.draining = True
        for stream in list(self.streams):
            if stream.protocol != FILE_PROTOCOL:
                stream.shut_down = True
                stream.finish()
        end = monotonic() + self.limits.drain_timeout
        while self.streams and monotonic() < end:
            await asyncio.sleep(0.05)

    def reload(self) -> "asyncio.Task[None]":
        """Load the model again for new streams; open streams keep theirs, and if that fails, new ones keep it too."""
        self._is_outdated = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())
        return self._reloading

    async def _reload(self) -> None:
        while self._is_outdated:  # again if the files changed while they were read
            self._is_outdated = False
            try:
                model = await asyncio.to_thread(SpeechModel.load, self.config)
            except Exception as error:  # damaged files raise many kinds of exceptions
                _log.error("cannot reload the model; still serving the previous one: %s", error)
                self.metrics.reloads.labels("failed").inc()
            else:
                self.model = model
                self.metrics.reloads.labels("completed").inc()
                print(f"reloaded {model.description}", flush=True)

    @property
    def load(self) -> float:
        """Duration of recent batches divided by the duration of a chunk."""
        return self._batcher.load

    def is_authorized(self, token: str | None) -> bool:
        """Return whether a client sent the secret, or none is required; takes the same time for all wrong secrets."""
        return self._token is None or hmac.compare_digest((token or "").encode(), self._token.encode())

    def check_busy(self) -> None:
        """Check that a further stream is accepted.

        Raises:
          BusyError: The server is saturated or shutting down.
        """
        if (reason := self._busy_reason()) is not None:
            self.metrics.refused.labels("draining" if self.draining else "busy").inc()
            raise BusyError(reason)

    def _busy_reason(self) -> str | None:
        if self.draining:
            return "the server is shutting down: use another one"
        if len(self.streams) >= self.limits.max_streams:
            return f"all {self.limits.max_streams} streams (--max-streams) are in use: try again later"
        load = max(self.load, self._expected_load())
        if load > self.limits.max_load:
            return f"the load would be {load:.2f}, more than {self.limits.max_load:g} (--max-load): try again later"
        return None

    def _expected_load(self) -> float:
        """Return the load with another stream; 0 if it is the only one, which a slow machine decodes late."""
        num_starting = sum(stream.is_starting for stream in self.streams)
        return self._batcher.expected_load(num_starting + 1) if self.streams else 0.0

    def open_stream(
        self,
        protocol: str,
        language: str | None = None,
        hotwords: Sequence[tuple[str, float]] = (),
        all_words: bool = False,
    ) -> ClientStream:
        """Open a stream.

        Args:
          protocol: Name of the protocol, for metrics.
          language: Code or name of the language, or "auto"; None: the default of the server.
          hotwords: Text and score per token of each hotword.
          all_words: Partial results have words with times, too.

        Raises:
          BusyError: The server is saturated or shutting down.
          RequestError: The model or its options do not support the request.
        """
        self.check_busy()
        if len(hotwords) > self.limits.max_hotwords:
            raise RequestError(
                f"{len(hotwords)} hotwords: expected at most {self.limits.max_hotwords} (--max-hotwords)"
            )
        model = self.model
        code = model.resolve_language(self.config.lang if language is None else language)
        recognizer = model.recognizer_with_hotwords(hotwords)
        stream = ClientStream(
            model,
            lambda: SpeechSession(model, recognizer, code, all_words),
            self._batcher,
            self.limits,
            protocol,
            code,
            self._on_close,
        )
        self.streams.add(stream)
        self.metrics.open_streams.labels(protocol).inc()
        return stream

    def container_executor(self, stream: ClientStream) -> Executor:
        """Return the executor of the thread that decodes the container of a stream.

        Raises:
          BusyError: All threads are in use.
        """
        if len(self._container_streams) >= self.limits.max_containers:
            self.metrics.refused.labels("busy").inc()
            raise BusyError(
                f"{self.limits.max_containers} streams in containers (--max-containers) are open: try again later, or "
                "send PCM"
            )
        self._container_streams.add(stream)
        return self._container_threads

    def _on_close(self, stream: ClientStream) -> None:
        self.streams.discard(stream)
        self._container_streams.discard(stream)
        self._print_notes(stream)
        outcome = "completed" if stream.error is None else stream.error.code
        self.metrics.open_streams.labels(stream.protocol).dec()
        self.metrics.streams.labels(stream.protocol, outcome).inc()
        self.metrics.audio_seconds.labels(stream.protocol).inc(stream.decoded_seconds)

    def _print_notes(self, stream: ClientStream) -> None:
        """Print the remarks about the audio of a stream, once per protocol: not every protocol has a field for them."""
        for note in stream.notes:
            is_new = (stream.protocol, note) not in self._printed_notes
            if is_new and len(self._printed_notes) < _MAX_PRINTED_NOTES:
                self._printed_notes.add((stream.protocol, note))
                print(f"note: audio of a {stream.protocol} client: {note}", flush=True)

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(min(_SUPERVISION_SECONDS, self.limits.idle_timeout / 2))
            self._end_idle_streams()  # a function, because a local variable would keep the last stream and its model

    def _end_idle_streams(self) -> None:
        """End streams whose clients send nothing, and drop those whose clients do not read."""
        timeout = self.limits.idle_timeout
        for stream in list(self.streams):
            if stream.sending_since is not None and monotonic() - stream.sending_since > timeout:
                stream.abort(f"the client did not read the results for {timeout:g} s (--idle-timeout)")
            elif stream.idle_seconds > _ABANDONED * timeout:
                stream.abort(f"the stream did not end within {_ABANDONED * timeout:g} s (10 times --idle-timeout)")
            elif stream.idle_seconds > timeout:
                stream.fail("limit", f"no message for {timeout:g} s (--idle-timeout): send silence to stay connected")
