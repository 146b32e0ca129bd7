"""Execution of shards: in processes of this machine, on the workers of dask, or as the parts of an array job."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeVar

from icefall_pathways.launch.parent import exit_with_parent
from icefall_pathways.ranges import Options

T = TypeVar("T")
R = TypeVar("R")

_MAX_QUEUED_ON_DASK = 512  # shards; its workers may come and go
_DASK_TIMEOUT = 20.0  # seconds


@dataclass(frozen=True)
class ArrayPart:
    """The part of an array job: the shards whose number is `remainder` modulo `num_parts`."""

    remainder: int = 0
    num_parts: int = 1

    @classmethod
    def parse(cls, text: str) -> "ArrayPart":
        """Parse "K/N", K from 1 to N; "" is the only part of one.

        Raises:
          ValueError: The text is something else.
        """
        if not text:
            return cls()
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise ValueError(f'--shard {text!r}: expected K/N with K from 1 to N, such as "3/64"')
        return cls(int(index) - 1, int(count))

    def selects(self, shard: int) -> bool:
        """Return whether a shard belongs to this part."""
        return shard % self.num_parts == self.remainder


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig(Options):
    """Options of a computation that is divided into shards."""

    num_jobs: int = 0
    """Number of processes; 0 uses all cores."""

    executor: Literal["local", "dask"] = "local"
    """local: processes of this machine; dask: the workers of --dask-scheduler."""

    dask_scheduler: str = ""
    """Scheduler of dask.distributed: an address, such as tcp://10.0.0.1:8786, or its --scheduler-file."""

    shard: str = ""
    """Part of an array job, K/N: compute only every Nth shard. Empty: compute all missing shards, and join them."""

    def report_part(self) -> bool:
        """Print how to continue after a part of an array job; return whether this was one."""
        if self.shard:
            print(f"part {self.shard} is complete: when all parts are, run the same command without --shard")
        return bool(self.shard)


@dataclass(frozen=True)
class Workers:
    """Computes tasks in parallel.

    Attributes:
      pool: Runs the tasks; None runs them in this process.
      max_queued: Largest number of submitted tasks, which bounds how far the list of tasks is read ahead.
      part: The part of an array job to compute.
    """

    pool: Executor | None = None
    max_queued: int = 1
    part: ArrayPart = field(default_factory=ArrayPart)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield the results of tasks, in the order in which they are completed.

        Args:
          function: Picklable; called with each task in any of the processes.
          tasks: Picklable; consumed lazily.

        Raises:
          OSError: A worker process was killed.
          Exception: The exception of a task.
        """
        if self.pool is None:
            yield from map(function, tasks)
            return
        call = partial(_call_in, Path.cwd(), function)
        running: set[Future[R]] = set()
        for task in tasks:
            if len(running) >= self.max_queued:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            running.add(self.pool.submit(call, task))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


@contextmanager
def open_workers(config: ExecutionConfig) -> Iterator[Workers]:
    """Start or connect to the workers that the options select; cancel their queue after an error or Ctrl-C.

    Raises:
      OSError: A worker process was killed.
      ValueError: Options are inconsistent, or the scheduler of dask cannot be reached.
    """
    part = ArrayPart.parse(config.shard)
    if config.executor == "dask":
        with _dask_pool(config.dask_scheduler) as pool:
            yield Workers(pool, _MAX_QUEUED_ON_DASK, part)
        return
    if config.dask_scheduler:
        raise ValueError(f"--dask-scheduler {config.dask_scheduler} has no effect with --executor local")
    num_processes = config.num_jobs or _num_cores()
    if num_processes == 1:
        yield Workers(part=part)
        return
    with process_pool(num_processes) as pool:
        yield Workers(pool, 3 * num_processes, part)


@contextmanager
def process_pool(num_processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start single-threaded worker processes, which end with this process; cancel their queue after an error or Ctrl-C.

    Raises:
      OSError: A worker process was killed.
    """
    pool = ProcessPoolExecutor(num_processes, get_context("spawn"), _start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process was killed, most likely because it ran out of memory: run the same command again with "
            f"a smaller --num-jobs than {num_processes}; completed work is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _num_cores() -> int:
    """Return the number of cores of this process: a scheduler of jobs may assign some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    import torch  # here, because commands that only list or start jobs import this module, too

    exit_with_parent()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process shuts down its workers


def _call_in(folder: Path, function: Callable[[T], R], task: T) -> R:
    """Call a function in a working folder: the paths of tasks may be relative, and other machines have another one."""
    if Path.cwd() != folder:
        os.chdir(folder)
    return function(task)


@contextmanager
def _dask_pool(scheduler: str) -> Iterator[Executor]:
    if not scheduler:
        raise ValueError("--executor dask needs the address of its scheduler, --dask-scheduler")
    from distributed import Client, KilledWorker

    address = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**address, timeout=_DASK_TIMEOUT, name="icefall_pathways")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot reach the scheduler of dask at {scheduler} ({error}): start it with `dask scheduler`, and its "
            "workers with `dask worker --nthreads 1` in this environment on machines that share this folder"
        ) from error
    with client:
        pool = client.get_executor(pure=False)
        try:
            yield pool
        except KilledWorker as error:
            raise OSError(
                f"several workers of dask were killed during the same task ({error}): see their logs"
            ) from error
        except CancelledError as error:
            raise OSError(
                f"the connection to the scheduler of dask at {scheduler} was lost: run the same command again; "
                "completed work is kept"
            ) from error
        finally:
            pool.shutdown(wait=False)
