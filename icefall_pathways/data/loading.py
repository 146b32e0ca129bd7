"""Batches that processes make ahead of time."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from icefall_pathways.data.manifests import DataError
from icefall_pathways.errors import first_line


def load_batches(dataset: Dataset[Any], sampler: Sampler[Any], num_workers: int) -> Iterator[Any]:
    """The dataset's batches in the order of the sampler.

    Args:
      dataset: Makes a batch, or an error to be returned, of what the sampler gives.
      sampler: Gives what belongs into each batch.
      num_workers: How many processes make batches; 0: this one does.

    Raises:
      DataError: One of the processes has died.
    """
    # The generator keeps the loader from drawing of the trainer's random numbers. Pinned memory is copied to a GPU
    # without waiting for it.
    batches: Iterable[Any] = DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        collate_fn=_identity,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_ignore_signals if num_workers else None,
    )
    yield from _with_worker_errors(iter(batches))


def _identity(batch: Any) -> Any:
    return batch


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C in a terminal, and many a scheduler, signal all processes of a run.

    It is the training that acts on it: it needs the batches of the update that it finishes, and ends its loaders then.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _with_worker_errors(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; the death of a process that makes them becomes an error that says what to do."""
    while True:
        with translate_worker_death():
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (EOFError, ConnectionError) as error:  # it died while handing over
                raise _worker_death_error(error) from error
        yield batch


@contextmanager
def translate_worker_death() -> Iterator[None]:
    """Inside, the death of a process that loads batches is an error that says what to do.

    Torch interrupts whatever is being computed at that moment, with an error of its own.

    Raises:
      DataError: One has died.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        raise _worker_death_error(error) from error


def is_worker_death(error: BaseException) -> bool:
    """Whether an error is torch's for a process that loads batches and has died."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _worker_death_error(error: Exception) -> DataError:
    return DataError(
        f"a process that loads batches has died ({first_line(error)}), most likely because memory ran out: "
        "lower --num-workers or --max-duration, and run the same command again to go on"
    )
