"""Connections of HTTP clients: close those whose request does not arrive, and those that are too many."""

import resource
import sys
from asyncio import TimerHandle, Transport
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from icefall_pathways.serve.connections import error_response
from icefall_pathways.serve.limits import Limits

_SPARE_FILES = 128  # that the process opens for other purposes


class RequestTimeoutProtocol(H11Protocol):
    """An HTTP connection that limits the time of a request, whose token is not checked before it arrives.

    The head of a request has to arrive within `--idle-timeout`, and so has each part of its body, which has to be
    complete within `--upload-timeout`. A response whose client reads nothing for `--idle-timeout` is dropped. A
    connection that would leave too few files for the rest of the process is closed at once.

    Args:
      limits: The limits.
      args, kwargs: See the base class.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._timer: TimerHandle | None = None
        self._body_of: RequestResponseCycle | None = None  # the request whose body arrives
        self._body_end = 0.0  # time at which it has to be complete
        self._write_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            transport.abort()
        else:
            self._start_timer(self._limits.idle_timeout)

    def handle_events(self) -> None:
        """Process the bytes of requests, when they arrive and after the response to a previous request."""
        super().handle_events()
        state = self.conn.their_state
        if state is h11.IDLE and self._timer is not None:
            return  # the head is incomplete: further bytes do not prolong its time
        self._stop_timer()
        if self not in self.connections:  # closed, or upgraded to a websocket, which has taken over the transport
            return
        if state is h11.IDLE:
            self._start_timer(self._limits.idle_timeout)
        elif state is h11.SEND_BODY:
            self._wait_for_body()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the client to read the response."""
        super().on_response_complete()
        self._wait_for_reader()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait_for_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        self._stop_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def _wait_for_body(self) -> None:
        now = self.loop.time()
        if self.cycle is not self._body_of:
            self._body_of, self._body_end = self.cycle, now + self._limits.upload_timeout
        self._start_timer(min(self._limits.idle_timeout, self._body_end - now))

    def _start_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        is_late = self.loop.time() >= self._body_end
        if self.conn.their_state is not h11.SEND_BODY or self.cycle.response_started:
            self.transport.abort()
        elif self.flow.read_paused and not is_late:  # the client waits for the server
            self._wait_for_body()
        elif is_late:
            self._refuse(f"the request did not arrive within {self._limits.upload_timeout:g} s (--upload-timeout)")
        else:
            self._refuse(f"no part of the request arrived for {self._limits.idle_timeout:g} s (--idle-timeout)")

    def _refuse(self, message: str) -> None:
        """Respond to a request whose body is not complete, and close the connection."""
        response = error_response(f"{message}: send it again, or split the file", 408)
        headers = [*response.raw_headers, (b"connection", b"close")]
        start = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
        for event in (start, h11.Data(bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.cycle.disconnected = True  # the application, which waits for the body, sends no other response
        self.cycle.message_event.set()
        self.transport.close()

    def _wait_for_reader(self) -> None:
        if self._write_timer is None:
            self._check_progress(sys.maxsize)

    def _check_progress(self, previous: int) -> None:
        """Drop a response of which the client has read nothing since the last check, when `previous` bytes waited."""
        num_waiting = self.transport.get_write_buffer_size()
        self._write_timer = None
        if num_waiting >= previous:
            self.transport.abort()
        elif num_waiting > 0:
            seconds = self._limits.idle_timeout
            self._write_timer = self.loop.call_later(seconds, self._check_progress, num_waiting)


def max_connections() -> int:
    """Return how many connections leave files for the rest of the process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - _SPARE_FILES, limit // 2)
