"""Connections of HTTP clients: close those whose request does not arrive, and those that are too many."""

import resource
import sys
from asyncio import TimerHandle, Transport
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_SPARE_FILES = 128  # that the process opens for other purposes


class RequestTimeoutProtocol(H11Protocol):
    """An HTTP connection that does not wait for ever for a request, whose token is not checked before it arrives.

    The head of a request has to arrive within the timeout, and so has each part of its body. A connection that would
    leave too few files for the rest of the process is closed at once.

    Args:
      timeout: Seconds until a connection is closed.
      args, kwargs: See the base class.
    """

    def __init__(self, *args: Any, timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout = timeout
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            transport.abort()
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Process bytes of the client."""
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE and self._timer is not None:
            return  # the head is incomplete: further bytes do not prolong its time
        self._stop_timer()
        is_upgraded = self not in self.connections  # to a websocket, which has taken over the transport
        if state in (h11.IDLE, h11.SEND_BODY) and not is_upgraded:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._timeout, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self.flow.read_paused:  # the client waits for the server
            self._start_timer()
        else:
            self.transport.abort()


def max_connections() -> int:
    """Return how many connections leave files for the rest of the process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(limit - _SPARE_FILES, limit // 2)
