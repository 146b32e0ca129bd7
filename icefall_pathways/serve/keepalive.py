"""Connections of websockets: close those of clients that are gone or do not read, and not of those that send much."""

from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.server import ServerProtocol

from icefall_pathways.errors import root_cause


class _ServerProtocol(ServerProtocol):
    """The websocket protocol, whose close frame names the option that limits the size of messages."""

    def __init__(self, max_message_bytes: int, **kwargs: Any) -> None:
        super().__init__(max_size=max_message_bytes, **kwargs)
        self._max_message_bytes = max_message_bytes

    def fail(self, code: CloseCode | int, reason: str = "") -> None:
        """Close the connection because of an error."""
        if code == CloseCode.MESSAGE_TOO_BIG:
            reason = f"a message exceeds {self._max_message_bytes} bytes (--max-message-bytes): send shorter ones"
        super().fail(code, reason)


class KeepaliveProtocol(WebSocketsSansIOProtocol):
    """A websocket whose client is gone if it neither answers a ping nor sends anything else.

    The answer of a client waits after its messages: time does not count while the server does not read, because its
    buffers are full, or as long as messages arrive. A connection is closed even if the client does not read what was
    sent before.
    """

    _last_arrival = 0.0
    _abort_timer: TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _ServerProtocol(self.config.ws_max_size, logger=self.conn.logger)

    def data_received(self, data: bytes) -> None:
        """Process bytes of the client."""
        self._last_arrival = self.loop.time()
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._reject(self.conn.handshake_exc)

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

    def _reject(self, error: Exception) -> None:
        """Answer a request that is not a valid handshake: the base class would leave the connection open."""
        advice = "send a GET request without a body, and with fewer or shorter headers"
        text = f"Failed to open a WebSocket connection: {root_cause(error)}: {advice}.\n"
        self.handshake_complete = self.close_sent = True
        self.transport.write(self.conn.reject(HTTPStatus.BAD_REQUEST, text).serialize())
        self.transport.close()

    def _abort_later(self) -> None:
        """Drop what the client has not read after the timeout of a ping: `Transport.close` would wait for it."""
        if self._abort_timer is None and self.ping_timeout is not None:
            self._abort_timer = self.loop.call_later(self.ping_timeout, self.transport.abort)
