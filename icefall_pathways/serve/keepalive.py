"""Connections of websockets: close those of clients that are gone or do not read, and not of those that send much."""

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class KeepaliveProtocol(WebSocketsSansIOProtocol):
    """A websocket whose client is gone if it neither answers a ping nor sends anything else.

    The answer of a client waits after its messages: time does not count while the server does not read, because its
    buffers are full, or as long as messages arrive. A connection is closed even if the client does not read what was
    sent before.
    """

    _last_arrival = 0.0
    _abort_timer: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Process bytes of the client."""
        self._last_arrival = self.loop.time()
        super().data_received(data)

    async def receive(self) -> Any:
        """Return the next message; only then the server reads further ones, and the answer to a ping after them."""
        message = await super().receive()
        self._last_arrival = self.loop.time()
        return message

    async def send(self, message: Any) -> None:
        """Send a message, after waiting for the client to read earlier ones, except to close the connection."""
        if message["type"] == "websocket.close":
            self.writable.set()
            self._abort_later()
        await super().send(message)

    def keepalive_timeout(self) -> None:
        """Close the connection, or wait again for the answer to the ping."""
        assert self.ping_timeout is not None  # else there are no timeouts
        if self.read_paused or self.loop.time() - self._last_arrival < self.ping_timeout:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            self._abort_later()
            super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        super().connection_lost(exc)

    def _abort_later(self) -> None:
        """Drop what the client has not read after the timeout of a ping: `Transport.close` would wait for it."""
        if self._abort_timer is None and self.ping_timeout is not None:
            self._abort_timer = self.loop.call_later(self.ping_timeout, self.transport.abort)
