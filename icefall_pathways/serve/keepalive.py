"""Keepalive of websockets: close the connections of clients that are gone, and not of those that send much."""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class KeepaliveProtocol(WebSocketsSansIOProtocol):
    """A websocket whose client is gone if it neither answers a ping nor sends anything else.

    The answer of a client waits after its messages: time does not count while the server does not read, because its
    buffers are full, or as long as messages arrive.
    """

    _last_arrival = 0.0

    def data_received(self, data: bytes) -> None:
        """Process bytes of the client."""
        self._last_arrival = self.loop.time()
        super().data_received(data)

    def keepalive_timeout(self) -> None:
        """Close the connection, or wait again for the answer to the ping."""
        assert self.ping_timeout is not None  # else there are no timeouts
        if self.read_paused or self.loop.time() - self._last_arrival < self.ping_timeout:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            super().keepalive_timeout()
