"""Keepalive and idle timeout: clients that wait for the server, or send much, are not cut off."""

import asyncio
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from running_server import ANY_LOAD, blocks, encoded, raw_client, receive_all, run_server, wait_until

from icefall_pathways.serve import server as server_module
from icefall_pathways.serve.keepalive import KeepaliveProtocol
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.service import Service

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


@pytest.fixture
def resumed(model, monkeypatch):
    """Return an event for which the next batch waits."""
    stream, event = model.recognizer.decoder.model.stream, threading.Event()

    def wait(*inputs):
        event.wait()
        return stream(*inputs)

    monkeypatch.setattr(model.recognizer.decoder.model, "stream", wait)
    yield event
    event.set()


def send_while_stalled(server, speech, resumed, condition):
    """Send audio that fills the buffers until a condition holds, and return the messages."""
    with server.connect() as client:
        client.send(START)
        for block in blocks(speech):
            client.send(block)
        client.send('{"type": "end"}')
        try:
            wait_until(condition)
        finally:
            resumed.set()
        return receive_all(client)


def test_client_that_waits_for_the_server_is_not_cut_off(model, speech, timeouts, resumed):
    """The buffers are full while a batch takes longer than the timeout."""
    limits = Limits(max_load=ANY_LOAD.max_load, max_buffer_seconds=0.5)
    with run_server(model, limits) as server:
        messages = send_while_stalled(server, speech, resumed, lambda: len(timeouts) == 2)
    assert messages[-1] == {"type": "ended", "reason": "end", "duration": 3.0, "notes": []}


def test_client_that_waits_for_the_server_is_not_idle(model, speech, resumed, monkeypatch):
    """The buffers are full for longer than the idle timeout."""
    checks, end_idle_streams = [], Service._end_idle_streams

    def count(service):
        end_idle_streams(service)
        checks.append(None)

    monkeypatch.setattr(Service, "_end_idle_streams", count)  # every half second
    limits = Limits(max_load=ANY_LOAD.max_load, max_buffer_seconds=0.5, idle_timeout=1.0)
    with run_server(model, limits) as server:
        messages = send_while_stalled(server, speech, resumed, lambda: len(checks) >= 6)
    assert messages[-1] == {"type": "ended", "reason": "end", "duration": 3.0, "notes": []}


def test_answer_to_a_ping_is_awaited_after_the_buffers_were_full():
    """It arrives after the message with which the server stopped reading."""
    clock, calls = SimpleNamespace(now=100.0), []
    loop = SimpleNamespace(time=lambda: clock.now, call_later=lambda *call: calls.append(call))
    protocol = KeepaliveProtocol.__new__(KeepaliveProtocol)
    protocol.loop, protocol.ping_timeout, protocol.read_paused = loop, 60.0, True
    protocol.queue, protocol.transport = asyncio.Queue(), SimpleNamespace(resume_reading=lambda: None)
    protocol.queue.put_nowait({"type": "websocket.receive"})
    clock.now += 59.0
    asyncio.run(protocol.receive())
    clock.now += 1.0
    protocol.keepalive_timeout()
    assert not protocol.read_paused and calls == [(60.0, protocol.keepalive_timeout)]


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
