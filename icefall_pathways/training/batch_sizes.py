"""Search for the largest batch of each language that fits into memory, before training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from icefall_pathways.data.augmentation import seeded
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.regularizers import load_regularizer_state, regularizer_state

_GROWTH = 1.25  # ratio of consecutive sizes
_MAX_FACTOR = 4.0  # largest size, as a multiple of --max-duration
_SEED = 1
_OOM_MESSAGES = ("out of memory", "ALLOC_FAILED")  # messages of CUDA, and of cuBLAS and cuDNN


@dataclass(frozen=True)
class MaxBatch:
    """The largest batch of a language that fits into memory.

    Attributes:
      language: Language code.
      longest_cut: Duration of the longest training cut, in seconds.
      max_duration: The largest --max-duration whose batch fits; 0: a batch of one cut does not fit.
      seconds: Audio in that batch.
      is_limit: Whether a larger batch was tried and did not fit.
    """

    language: str
    longest_cut: float
    max_duration: float
    seconds: float
    is_limit: bool


def scan_batch_sizes(
    model: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    data: SpeechDataModule,
    rank: Rank,
    raises_on_oom: bool | None = None,
) -> list[MaxBatch]:
    """Find the largest batch of each language that fits, by forward and backward passes on batches of its longest cuts.

    Memory is reserved for the optimizer state and for the all-reduce. Parameters, the state of regularizers, the random
    state, and the order of the training batches stay unchanged.

    Args:
      model: In training mode, on the device of the rank.
      loss_of: Computes the scalar loss of a batch with the model.
      data: Its `max_duration` is the size that must fit.
      rank: This process. All ranks must call this together.
      raises_on_oom: Whether the device raises an exception when it is out of memory; by default True for CUDA only. On
        other devices, such as a CPU, only `max_duration` is tried.

    Returns:
      The result of each language, the minimum over all ranks.

    Raises:
      ValueError: `max_duration` does not fit; the message says which size does.
    """
    regularizers = regularizer_state(model)
    requested = data.config.max_duration
    if raises_on_oom is None:
        raises_on_oom = rank.device.type == "cuda"
    largest = requested * (_MAX_FACTOR if raises_on_oom else 1.0)
    with seeded(_SEED):
        reserve = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
        local = [_search(model, loss_of, data, language.code, largest) for language in data.languages]
        del reserve
    load_regularizer_state(model, regularizers)
    by_language = zip(*rank.gather(local), strict=True)
    results = [min(batches, key=lambda batch: batch.seconds) for batches in by_language]
    if too_small := [batch for batch in results if batch.max_duration < requested]:
        raise ValueError(
            f"batches of --max-duration {requested:g} do not fit into memory:\n{format_table(results)}\n"
            f"use --max-duration {min(batch.max_duration for batch in too_small):.0f} at most, and --accum-grad for "
            "the same audio per update"
        )
    return results


def format_table(batches: list[MaxBatch]) -> str:
    """Return a table with a row for each language."""
    rows = [[b.language, b.longest_cut, b.max_duration, b.seconds, "yes" if b.is_limit else "no"] for b in batches]
    header = ["language", "longest cut (s)", "--max-duration that fits", "audio in batch (s)", "larger batch fails"]
    return tabulate(rows, header, "simple_outline", floatfmt=".1f")


def _search(
    model: nn.Module, loss_of: Callable[[Batch], Tensor], data: SpeechDataModule, language: str, largest: float
) -> MaxBatch:
    size, best = data.config.max_duration, 0.0
    longest_cut = data.longest_batch(language, 0.0).seconds
    seconds, is_limit = 0.0, False
    while longest_cut <= size <= largest or best == 0.0:
        batch = data.longest_batch(language, size)
        if _fits(model, loss_of, batch.extend(data.config.max_added_frames)):
            best, seconds = size, batch.seconds
            if is_limit:
                break
            size *= _GROWTH
        else:
            is_limit = True
            if best > 0.0 or len(batch) == 1:
                break
            size /= _GROWTH
    return MaxBatch(language, longest_cut, best, seconds, is_limit)


def _fits(model: nn.Module, loss_of: Callable[[Batch], Tensor], batch: Batch) -> bool:
    try:
        loss_of(batch).backward()
        return True
    except (RuntimeError, MemoryError) as error:  # torch 1.13 raises RuntimeError
        if isinstance(error, RuntimeError) and not any(message in str(error) for message in _OOM_MESSAGES):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
