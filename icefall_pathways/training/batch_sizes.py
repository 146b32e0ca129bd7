"""The largest batch of each language that fits into memory, found before training."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from icefall_pathways.data.augmentation import seeded
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.models.regularizers import load_regularizer_state, regularizer_state
from icefall_pathways.training.launch.ranks import Rank
from icefall_pathways.training.objective import seconds_of

_STEP = 1.25  # between two sizes that are tried
_MOST = 4.0  # times the wanted size at which the search ends
_SEED = 1
_NO_MEMORY = ("out of memory", "ALLOC_FAILED")  # of CUDA, and of cuBLAS and cuDNN


@dataclass(frozen=True)
class Fit:
    """What fits of one language.

    Attributes:
      language: Its code.
      longest: Seconds of its longest training cut.
      size: The largest --max-duration that was found to fit; 0: not even one cut does.
      seconds: Audio in a batch of that size.
      is_limit: Whether a larger one was found not to fit.
    """

    language: str
    longest: float
    size: float
    seconds: float
    is_limit: bool


def scan_batch_sizes(
    model: nn.Module, loss_of: Callable[[Batch], Tensor], data: SpeechDataModule, rank: Rank, tells: bool | None = None
) -> list[Fit]:
    """Compute the loss and the gradients of batches of each language's longest cuts, smaller and larger ones.

    Room is left for the optimizer's state and for what ranks exchange. Parameters, what regularizers have learnt,
    random numbers and the order of the training's batches stay as they are.

    Args:
      model: In training mode, on the rank's device.
      loss_of: The loss of a batch through it, a scalar.
      data: Its `max_duration` is the wanted size.
      rank: All ranks scan; each gets the least of what all found.
      tells: Whether the device tells when memory runs out; by default CUDA does. Of one that does not, such as a CPU,
        only the wanted size is tried.

    Raises:
      ValueError: The wanted size does not fit; the message says what does.
    """
    learnt = regularizer_state(model)
    wanted = data.config.max_duration
    most = wanted * (_MOST if (rank.device.type == "cuda" if tells is None else tells) else 1.0)
    with seeded(_SEED):
        reserve = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
        found = [_largest(model, loss_of, data, language.code, most) for language in data.languages]
        del reserve
    load_regularizer_state(model, learnt)
    fits = [min(of_ranks, key=lambda fit: fit.seconds) for of_ranks in zip(*rank.gather(found), strict=True)]
    if short := [fit for fit in fits if fit.size < wanted]:
        raise ValueError(
            f"batches of --max-duration {wanted:g} do not fit into memory:\n{describe(fits)}\n"
            f"use --max-duration {min(fit.size for fit in short):.0f} at most; --accum-grad makes up for it"
        )
    return fits


def describe(fits: list[Fit]) -> str:
    """A table of what fits."""
    rows = [[fit.language, fit.longest, fit.size, fit.seconds, "yes" if fit.is_limit else "no"] for fit in fits]
    header = ["language", "longest cut (s)", "--max-duration that fits", "audio in it (s)", "more does not fit"]
    return tabulate(rows, header, "simple_outline", floatfmt=".1f")


def _largest(
    model: nn.Module, loss_of: Callable[[Batch], Tensor], data: SpeechDataModule, language: str, most: float
) -> Fit:
    size, best = data.config.max_duration, 0.0
    longest = data.longest_batch(language, 0.0)
    least = seconds_of(longest)
    seconds, is_limit = 0.0, False
    while least <= size <= most or best == 0.0:
        batch = data.longest_batch(language, size)
        if _fits(model, loss_of, batch):
            best, seconds = size, seconds_of(batch)
            if is_limit:
                break
            size *= _STEP
        else:
            is_limit = True
            if best > 0.0 or len(batch) == 1:
                break
            size /= _STEP
    return Fit(language, least, best, seconds, is_limit)


def _fits(model: nn.Module, loss_of: Callable[[Batch], Tensor], batch: Batch) -> bool:
    try:
        loss_of(batch).backward()
        return True
    except (RuntimeError, MemoryError) as error:  # older versions of torch have no class of their own for it
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _NO_MEMORY):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
