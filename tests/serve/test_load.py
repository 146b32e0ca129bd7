"""The load by which the server refuses streams."""

import asyncio
import contextlib
import json
from collections import deque
from types import SimpleNamespace

import pytest
from running_server import run_server

from icefall_pathways.serve import batcher as batcher_module
from icefall_pathways.serve import streams as streams_module
from icefall_pathways.serve.batcher import Batcher
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.load import BatchCost
from icefall_pathways.serve.metrics import Metrics


class SlowStream:
    """A stream whose chunks of 0.3 s take 3 s each, and which is its own session and recognizer."""

    def __init__(self, clock):
        self.clock, self.loads = clock, []
        self.inbox, self.closed, self.is_ready, self.finished = deque(), False, True, False
        self.chunk_seconds, self.decoded_seconds = 0.3, 0.0
        self.session = self.recognizer = self.inner = self

    def save(self):
        return []

    def events(self, result):
        return []

    def advance(self, sessions):
        assert list(sessions) == [self]
        self.clock.now += 3.0
        self.loads.append(self.batcher.load)
        return []


def test_server_is_not_idle_during_and_after_a_batch_that_takes_seconds(monkeypatch):
    """If it falls back from real time, no batch may have ended for longer than an idle server needs."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(batcher_module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda _: None))
    loop = asyncio.new_event_loop()
    batcher, stream = Batcher(loop, Metrics()), SlowStream(clock)
    stream.batcher = batcher
    batcher.wake(stream)
    assert batcher.load == 0
    assert batcher._step() and batcher._step() and batcher._step()
    assert stream.loads == pytest.approx([3.0, 10.0, 10.0])  # the duration of a chunk is known after the first one
    assert batcher.load == pytest.approx(8.75)
    clock.now += 1.5
    assert batcher.load == 0
    loop.close()


def test_cost_of_a_batch_is_linear_in_its_streams():
    cost = BatchCost()
    assert cost.predict(10) == 0
    for _ in range(3):
        cost.add(2, 0.014)
    assert cost.predict(2) == pytest.approx(0.014)
    assert cost.predict(10) == pytest.approx(0.0532)  # 0.7 of the average for each of 8 more
    for num_streams in (1, 5, 3, 8):
        cost.add(num_streams, 0.01 + 0.002 * num_streams)
    assert cost.predict(100) == pytest.approx(0.21)
    for num_streams in [3, 4, 5] * 200:  # the machine is slower now
        cost.add(num_streams, 0.02 + 0.004 * num_streams)
    assert cost.predict(100) == pytest.approx(0.42, rel=1e-3)
    for num_streams in [1, 3] * 300:
        cost.add(num_streams, 0.01 * num_streams)
    assert cost.predict(10) == pytest.approx(0.076, rel=1e-3)  # larger batches are more efficient


def test_streams_that_start_at_once_are_refused_before_their_audio_arrives(model, monkeypatch):
    """Their load is not measured yet; the first one is accepted on any machine."""
    monkeypatch.setattr(streams_module, "_START_SECONDS", 1000.0)
    monkeypatch.setattr(Batcher, "expected_load", lambda _, num_more: num_more * 0.2)
    with run_server(model, Limits(max_load=0.7)) as server, contextlib.ExitStack() as clients:
        answers = []
        for _ in range(5):
            client = clients.enter_context(server.connect())
            client.send(json.dumps({"type": "start", "language": "en"}))
            answers.append(json.loads(client.recv()))
    assert [answer["type"] for answer in answers] == ["ready"] * 3 + ["error"] * 2
    assert answers[-1]["code"] == "busy" and "the load would be 0.80" in answers[-1]["message"]


def test_expected_load_is_that_of_the_streams_of_the_last_second(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(batcher_module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda _: None))
    loop = asyncio.new_event_loop()
    batcher = Batcher(loop, Metrics())
    streams = [SlowStream(clock) for _ in range(2)]
    for stream in streams:
        stream.batcher = batcher
        batcher.wake(stream)
    assert batcher._step()
    assert batcher.expected_load(0) == pytest.approx(20.0) and batcher.expected_load(2) == pytest.approx(34.0)
    clock.now += 1.5
    assert batcher.expected_load(1) == pytest.approx(13.0)
    loop.close()
