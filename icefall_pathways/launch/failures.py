"""Stop every rank when one fails, and report the first failure."""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from types import TracebackType

import torch.distributed as dist

_POLL_SECONDS = 1.0
_HEARTBEAT_TIMEOUT = 45.0  # seconds without a heartbeat after which a rank is considered dead
_FAILURE_KEY, _REPORTED_KEY = "failure", "failure/reported"


@dataclass(frozen=True)
class RankFailure:
    """The failure of a rank.

    Attributes:
      rank: Index of the rank.
      message: The error message, in one line.
      traceback: The formatted traceback.
      is_user_error: True if the error is user-actionable; such errors are reported without a traceback.
    """

    rank: int
    message: str
    traceback: str
    is_user_error: bool


class RankError(RuntimeError):
    """A rank failed; the message contains its traceback."""


def raise_failure(failure: RankFailure) -> None:
    """Raise the failure of a rank in the process that started the ranks.

    Raises:
      ValueError: The error is user-actionable.
      RankError: Any other error.
    """
    if failure.is_user_error:
        raise ValueError(f"rank {failure.rank}: {failure.message}")
    raise RankError(f"rank {failure.rank} failed, and all other ranks were stopped:\n{failure.traceback}")


def read_failure(store: dist.Store) -> RankFailure | None:
    """Return the first failure of a rank, or None if no rank failed."""
    return RankFailure(**json.loads(store.get(_FAILURE_KEY))) if _counter(store, _REPORTED_KEY) else None


class FailureWatch:
    """Context manager that reports an exception inside it to the other ranks, and exits when another rank reports one.

    A killed rank cannot report. Therefore each rank sends heartbeats: rank 0 watches the heartbeats of all other ranks,
    and they watch the one of rank 0. A thread does this, because the main thread may wait for the failed rank.

    Args:
      store: Shared by all ranks.
      rank: Index of this rank.
      world_size: Number of ranks.
      prints: Whether to print the report of this rank too, because no process waits for it and prints it.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, prints: bool) -> None:
        self._prints = prints
        self._store = store
        self._rank = rank
        self._watched_ranks = range(1, world_size) if rank == 0 else range(1)
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "FailureWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, exc_traceback: TracebackType | None
    ) -> None:
        self._finished.set()
        if isinstance(error, Exception):
            self._report(error)
            # A regular exit of the interpreter can block in collectives that other ranks no longer join.
            _exit_now()

    def _report(self, error: Exception) -> None:
        formatted = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        is_user_error = isinstance(error, ValueError | OSError)
        failure = RankFailure(self._rank, str(error) or repr(error), formatted, is_user_error)
        try:
            if self._store.add("failures", 1) > 1:
                return  # a consequence of the first failure
            reason = failure.message if is_user_error else formatted
            if self._prints:
                print(f"rank {self._rank} failed: {reason}", file=sys.stderr, flush=True)
            self._store.set(_FAILURE_KEY, json.dumps(asdict(failure)))
            self._store.add(_REPORTED_KEY, 1)
        except RuntimeError:  # the process that hosts the store has exited
            print(formatted, file=sys.stderr, flush=True)
        time.sleep(2 * _POLL_SECONDS)  # lets the other ranks read the report before their connections break

    def _watch(self) -> None:
        heartbeats: dict[int, tuple[int, float]] = {}
        while not self._finished.wait(_POLL_SECONDS):
            try:
                self._store.add(f"heartbeat/{self._rank}", 1)
                if _counter(self._store, _REPORTED_KEY):
                    _exit_now()
                dead_rank = self._find_dead_rank(heartbeats)
            except RuntimeError:
                if not self._finished.wait(5 * _POLL_SECONDS):
                    _exit_now()  # the process that hosts the store has exited
                return
            if dead_rank is not None and not self._finished.is_set():
                print(f"rank {dead_rank} sent no heartbeat for {_HEARTBEAT_TIMEOUT:.0f} s", file=sys.stderr, flush=True)
                _exit_now()

    def _find_dead_rank(self, heartbeats: dict[int, tuple[int, float]]) -> int | None:
        """Update `heartbeats` (count and time of the last change, by rank) and return a rank without a heartbeat."""
        now = time.monotonic()
        for rank in self._watched_ranks:
            count = _counter(self._store, f"heartbeat/{rank}")
            if rank not in heartbeats or heartbeats[rank][0] != count:
                heartbeats[rank] = (count, now)
            elif now - heartbeats[rank][1] > _HEARTBEAT_TIMEOUT:
                return rank
        return None


def _counter(store: dist.Store, key: str) -> int:
    return store.add(key, 0)  # unlike `get`, it does not wait for a missing key


def _exit_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
