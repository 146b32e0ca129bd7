"""Loader workers: they stop when the batches are closed, and killed ones do not block the process."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from types import FrameType

import pytest
from torch.utils.data import Dataset

from icefall_pathways.data.loading import load_batches, translate_worker_death
from icefall_pathways.data.manifests import DataError


class Numbers(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class ParentState(Dataset[bool]):
    """Return whether a worker has the state of the process that loads; a spawned one imports this module again."""

    started = False

    def __getitem__(self, _index: int) -> bool:
        return self.started


def load_in_rank(results: Connection) -> None:
    ParentState.started = True
    results.send(list(load_batches(ParentState(), [0], 1)))


class KilledWithLocks(Dataset[int]):
    """The worker is killed while it holds all locks that it shares with the process that loads."""

    def __getitem__(self, index: int) -> int:
        frame: FrameType | None = sys._getframe()
        while frame is not None and "done_event" not in frame.f_locals:
            frame = frame.f_back
        assert frame is not None
        for name in ("done_event", "index_queue", "data_queue"):
            for attribute, lock in vars(frame.f_locals[name]).items():
                if attribute in ("_cond", "_rlock", "_wlock") and (name, attribute) != ("data_queue", "_rlock"):
                    lock.acquire(block=False)
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@contextmanager
def raise_if_blocked(seconds: int = 60) -> Iterator[None]:
    """Raise an error in place of blocking the tests."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"blocked for {seconds} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_killed_with_locks_does_not_block(num_workers: int) -> None:
    batches = load_batches(KilledWithLocks(), range(10), num_workers)
    with raise_if_blocked():
        with pytest.raises(DataError, match="a data loader worker has died"), translate_worker_death():
            list(batches)
        batches.close()
    assert not active_children()


def test_workers_that_do_not_respond_are_killed() -> None:
    batches = load_batches(Numbers(), range(10), 1)
    assert next(batches) == 0
    (worker,) = active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with raise_if_blocked():
        batches.close()
    assert not active_children()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_stop_after_the_last_batch(num_workers: int) -> None:
    batches = load_batches(Numbers(), range(5), num_workers)
    assert list(batches) == list(range(5))
    assert not active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems spawn workers")
def test_workers_of_spawned_ranks_are_forked():
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    rank = context.Process(target=load_in_rank, args=(sender,))
    rank.start()
    try:
        assert receiver.poll(100)
        assert receiver.recv() == [True]
    finally:
        rank.kill()
        rank.join()
