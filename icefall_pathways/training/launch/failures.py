"""When one rank fails, all end, and the first failure is the one that is told."""

import json
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from types import TracebackType

import torch.distributed as dist

_POLL = 1.0  # seconds between two looks at the others
_LOST_AFTER = 45.0  # seconds without a sign of life after which a rank is given up
_KEY, _TOLD = "failure", "failure/told"


@dataclass(frozen=True)
class Failure:
    """Why a rank failed.

    Attributes:
      rank: Which.
      message: The error, in one line.
      trace: Where it came from.
      is_users: Whether it is an error that the user can act on, which is told without its trace.
    """

    rank: int
    message: str
    trace: str
    is_users: bool


class RankError(RuntimeError):
    """A rank failed; the message holds its trace."""


def raise_again(failure: Failure) -> None:
    """Raise in the process that started the ranks what one of them raised.

    Raises:
      ValueError: An error that the user can act on.
      RankError: Any other.
    """
    if failure.is_users:
        raise ValueError(f"rank {failure.rank}: {failure.message}")
    raise RankError(f"rank {failure.rank} failed, and all others were ended:\n{failure.trace}")


def read_failure(store: dist.Store) -> Failure | None:
    """The first failure of a rank, if there was one."""
    return Failure(**json.loads(store.get(_KEY))) if _count(store, _TOLD) else None


class FailureWatch:
    """A context that tells the other ranks of an exception in it, and ends this process when another rank tells.

    A rank whose process has died cannot tell: each gives a sign of life, rank 0 looks for those of all the others and
    they for that of rank 0. Looking is a thread's work, for the main one may be waiting for the rank that failed.

    Args:
      store: Shared by the ranks.
      rank: This one.
      world_size: How many there are.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._watched = range(1, world_size) if rank == 0 else range(1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "FailureWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if isinstance(error, Exception):
            self._tell(error)
            # Not by way of the interpreter's end, which may wait for transfers that nobody takes part in any more.
            _leave()

    def _tell(self, error: Exception) -> None:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        is_users = isinstance(error, ValueError | OSError)
        failure = Failure(self._rank, str(error) or repr(error), trace, is_users)
        try:
            if self._store.add("failures", 1) > 1:
                return  # a consequence of the first one
            print(f"rank {self._rank} failed: {failure.message if is_users else trace}", file=sys.stderr, flush=True)
            self._store.set(_KEY, json.dumps(asdict(failure)))
            self._store.add(_TOLD, 1)
        except RuntimeError:  # the store has gone with the process that kept it
            print(trace, file=sys.stderr, flush=True)
        time.sleep(2 * _POLL)  # so that the others learn of it before their connections break

    def _watch(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        while not self._over.wait(_POLL):
            try:
                self._store.add(f"alive/{self._rank}", 1)
                if _count(self._store, _TOLD):
                    _leave()
                lost = self._lost(seen)
            except RuntimeError:
                if not self._over.wait(5 * _POLL):
                    _leave()  # the process that kept the store has gone
                return
            if lost is not None and not self._over.is_set():
                print(f"rank {lost} gave no sign of life for {_LOST_AFTER:.0f} s", file=sys.stderr, flush=True)
                _leave()

    def _lost(self, seen: dict[int, tuple[int, float]]) -> int | None:
        now = time.monotonic()
        for rank in self._watched:
            beat = _count(self._store, f"alive/{rank}")
            if rank not in seen or seen[rank][0] != beat:
                seen[rank] = (beat, now)
            elif now - seen[rank][1] > _LOST_AFTER:
                return rank
        return None


def _count(store: dist.Store, key: str) -> int:
    return store.add(key, 0)  # unlike reading, it does not wait for a key that is not there


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
