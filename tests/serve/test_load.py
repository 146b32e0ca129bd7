"""The load by which the server refuses streams."""

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest

from icefall_pathways.serve import batcher as batcher_module
from icefall_pathways.serve.batcher import Batcher
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
