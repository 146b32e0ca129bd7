"""Batch loading in worker processes, with errors that say how to recover from the death of a worker."""

import atexit
import multiprocessing.util  # before atexit.register: its own function at exit has to run later
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from ctypes import c_bool
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from icefall_pathways.data.manifests import DataError
from icefall_pathways.errors import first_line

_open_loaders: "WeakSet[Generator[Any, None, None]]" = WeakSet()


@atexit.register
def _close_loaders() -> None:
    """Stop the workers of loaders that have not been closed.

    `multiprocessing` sends them SIGTERM at exit, which they ignore, and waits for them.
    """
    for loader in list(_open_loaders):
        with suppress(ValueError):  # the generator is running
            loader.close()


def load_batches(
    dataset: Dataset[Any], plans: Sampler[Any] | Sequence[Any], num_workers: int
) -> Generator[Any, None, None]:
    """Yield the items of a dataset in the order of a sampler; workers stop when the generator is closed.

    Args:
      dataset: Maps an element of the sampler to a batch, or to an error that is raised in its place.
      plans: The descriptions of the batches.
      num_workers: Worker processes that make batches; 0 makes them in this process.

    Raises:
      DataError: A batch cannot be made, or a worker process has died.
    """
    loader = _load_batches(dataset, plans, num_workers)
    _open_loaders.add(loader)
    return loader


def _load_batches(
    dataset: Dataset[Any], plans: Sampler[Any] | Sequence[Any], num_workers: int
) -> Generator[Any, None, None]:
    """Yield the items of a dataset; see `load_batches`.

    Raises:
      DataError: A batch cannot be made, or a worker process has died.
    """
    # The generator keeps the DataLoader from drawing from the global random state, which belongs to the trainer.
    # Pinned memory allows asynchronous copies to a GPU.
    batches: Iterable[Any] = DataLoader(
        dataset,
        sampler=plans,
        batch_size=None,
        collate_fn=_identity,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_ignore_signals if num_workers else None,
        multiprocessing_context=_context() if num_workers else None,
    )
    iterator = iter(batches)
    try:
        while True:
            with translate_worker_death():
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except (EOFError, ConnectionError) as error:  # the worker died while it transferred a batch
                    raise _worker_death_error(error) from error
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        if num_workers:
            _stop_workers(iterator)


class _Flag:
    """An event of `multiprocessing` without a lock, which a worker might hold when it is killed."""

    def __init__(self) -> None:
        self._value = RawValue(c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def is_set(self) -> bool:
        return self._value.value


def _context() -> BaseContext:
    """Return a context of `multiprocessing`, with events without locks.

    On Linux, workers are forked, also in ranks, which are spawned themselves. Spawning a worker takes seconds at every
    validation, and a rank blocks if a signal to the whole job ends a worker to which it is writing the state to start
    from.
    """
    method = "fork" if sys.platform == "linux" else multiprocessing.get_start_method()
    context: Any = copy(multiprocessing.get_context(method))
    context.Event = _Flag
    return context


def _stop_workers(iterator: Any) -> None:
    """Stop the workers of an iterator of a DataLoader; torch has no public function for this."""
    try:
        if all(worker.is_alive() for worker in iterator._workers):
            iterator._shutdown_workers()
    except RuntimeError as error:  # a worker has died meanwhile
        if not is_worker_death(error):
            raise
    finally:
        _kill_workers(iterator)


def _kill_workers(iterator: Any) -> None:
    """Kill the workers that still run, and make torch's own shutdown in `__del__` do nothing.

    That shutdown waits for the thread of pinned memory, which never ends if a worker has died in the middle of a
    message.
    """
    if iterator._worker_pids_set:  # or torch would report the killed workers as an error
        iterator._worker_pids_set = False
        signal_handling._remove_worker_pids(id(iterator))
    iterator._shutdown = True
    if hasattr(iterator, "_pin_memory_thread_done_event"):
        iterator._pin_memory_thread_done_event.set()
    for queue in iterator._index_queues:
        queue.cancel_join_thread()
        queue.close()
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join()


def _identity(batch: Any) -> Any:
    return batch


def _ignore_signals(_worker: int) -> None:
    """Ignore SIGINT and SIGTERM, which terminals and some schedulers send to all processes of a run.

    The training process handles them: it still needs batches to complete its update, and stops its workers afterwards.
    """
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)


@contextmanager
def translate_worker_death() -> Iterator[None]:
    """Translate torch's error about a dead loader worker into one that says how to recover.

    Torch raises it from a signal handler, so that it can interrupt any computation inside this context.

    Raises:
      DataError: A worker process has died.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        raise _worker_death_error(error) from error


def is_worker_death(error: BaseException) -> bool:
    """Return True if `error` is torch's error about a loader worker that has died."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _worker_death_error(error: Exception) -> DataError:
    return DataError(
        f"a data loader worker has died ({first_line(error)}), most likely because it ran out of memory: lower "
        "--num-workers or --max-duration, and run the same command again to resume"
    )
