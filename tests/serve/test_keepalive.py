"""Keepalive: clients whose answers to pings are late because they send much are not cut off."""

import json
import threading

import numpy as np
import pytest
from running_server import ANY_LOAD, blocks, encoded, raw_client, receive_all, run_server, wait_until

from icefall_pathways.serve import server as server_module
from icefall_pathways.serve.keepalive import KeepaliveProtocol
from icefall_pathways.serve.limits import Limits

START = json.dumps({"type": "start", "language": "en"})


@pytest.fixture
def timeouts(monkeypatch):
    """Return a list that grows with each expired ping; they expire after a second."""
    expired, expire = [], KeepaliveProtocol.keepalive_timeout

    def count(protocol):
        expire(protocol)
        expired.append(protocol)

    monkeypatch.setattr(KeepaliveProtocol, "keepalive_timeout", count)
    monkeypatch.setattr(server_module, "_KEEPALIVE_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "_KEEPALIVE_TIMEOUT", 1.0)
    return expired


def test_client_that_waits_for_the_server_is_not_cut_off(model, speech, timeouts, monkeypatch):
    """The buffers are full while a batch takes longer than the timeout."""
    stream, resumed = model.recognizer.decoder.model.stream, threading.Event()

    def wait(*inputs):
        resumed.wait()
        return stream(*inputs)

    monkeypatch.setattr(model.recognizer.decoder.model, "stream", wait)
    limits = Limits(max_load=ANY_LOAD.max_load, max_buffer_seconds=0.5)
    with run_server(model, limits) as server, server.connect() as client:
        client.send(START)
        for block in blocks(speech):
            client.send(block)
        client.send('{"type": "end"}')
        try:
            wait_until(lambda: len(timeouts) == 2)
        finally:
            resumed.set()
        assert receive_all(client)[-1] == {"type": "ended", "reason": "end", "duration": 3.0, "notes": []}


def test_client_that_sends_is_not_cut_off(model, speech, timeouts):
    """It answers no ping, and the server reads all it sends."""
    block = np.zeros(160, "<i2").tobytes()
    with run_server(model) as server, raw_client(server.address) as (raw, protocol):
        protocol.send_text(START.encode())

        def send_until_timeouts():
            protocol.send_binary(block)
            raw.sendall(encoded(protocol))
            return len(timeouts) == 2

        wait_until(send_until_timeouts)
        assert server.service.streams
