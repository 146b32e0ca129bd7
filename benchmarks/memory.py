#!/usr/bin/env python3
r"""Measure how much memory a training holds, and how that grows with languages.

Usage:

  OMP_NUM_THREADS=1 benchmarks/memory.py --size medium --num-languages "1 4 8 32" --write 1

For each number of languages, in a process of its own: a Zipformer, random masks, the optimizer, the running average,
and an update of every language, the first one on two utterances of 5 s, the others with random gradients. Sizes of
objects are those of their tensors; the peak is the most that the process had resident, its libraries included.
"""

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from random_masks import random_masks
from tables import put_table
from tabulate import tabulate
from torch import Tensor

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.activation import PathwayModule

VOCAB_SIZE = 500
SPARSITY = 0.7
OBJECTS = ("weights", "gradients", "optimizer", "average", "masks")
REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class MemoryConfig:
    """What to measure."""

    size: str = "medium"
    """Size of the Zipformer."""

    num_languages: str = "1 4 8 32"
    """Numbers of languages; each has a random mask of 70 % sparsity."""

    write: bool = False
    """Put the figures into benchmarks/memory.md."""


def held(size: str, num_languages: int) -> dict[str, float]:
    """Megabytes of each of `OBJECTS` in this process, after an update of every language, and "peak"."""
    torch.manual_seed(42)
    model = build_model(ModelConfig(encoder_type="zipformer", zipformer=size), VOCAB_SIZE).train()
    languages = [f"l{i}" for i in range(num_languages)]
    masks = random_masks(model, languages, SPARSITY)
    module = PathwayModule(model, masks)
    optimizer = ScaledAdam(model.named_parameters())
    average = ModelAverage(model, 1)
    for i, language in enumerate(languages):
        if i == 0:
            y = torch.randint(1, VOCAB_SIZE, (2, 20))
            losses = module(
                language, 2 * torch.randn(2, 500, 80) - 7, torch.tensor([500] * 2), y, torch.tensor([20] * 2)
            )
            (losses.simple + losses.pruned).backward()
        else:
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
        optimizer.activate(masks, language)
        optimizer.step()
        average.update(model, i + 1)
    # Views of the flat vectors that the optimizer computes with are counted once.
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors: dict[str, Iterable[Tensor]] = {
        "weights": model.parameters(),
        "gradients": (parameter.grad for parameter in model.parameters() if parameter.grad is not None),
        "optimizer": states,
        "average": average.state_dict().values(),
        "masks": masks.codes.values(),
    }
    sizes = {name: megabytes(tensors[name]) for name in OBJECTS}
    return sizes | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}


def megabytes(tensors: Iterable[Tensor]) -> float:
    """What tensors take together, in 10^6 bytes; those that share memory count once."""
    storages = {tensor.storage().data_ptr(): tensor.storage().nbytes() for tensor in tensors}
    return sum(storages.values()) / 1e6


def _tell(queue: "Queue[dict[str, float]]", size: str, num_languages: int) -> None:
    queue.put(held(size, num_languages))


def measure(size: str, num_languages: int) -> dict[str, float]:
    """`held` in a process of its own."""
    context = get_context("spawn")
    queue: Queue[dict[str, float]] = context.Queue()
    process = context.Process(target=_tell, args=(queue, size, num_languages))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    """Read the options, measure, print the table."""
    config = parse(MemoryConfig, __doc__)
    numbers = [int(number) for number in config.num_languages.split()]
    found = {number: measure(config.size, number) for number in numbers}
    header = ["languages", *OBJECTS, "together", "peak"]
    rows = [
        [
            str(number),
            *(f"{value:.0f}" for value in [*(sizes[name] for name in OBJECTS), _together(sizes), sizes["peak"]]),
        ]
        for number, sizes in found.items()
    ]
    print(tabulate(rows, header, tablefmt="pipe", disable_numparse=True))
    if config.write:
        put_table(REPORT, "languages", header, rows)


def _together(sizes: dict[str, float]) -> float:
    return sum(sizes[name] for name in OBJECTS)


if __name__ == "__main__":
    run_script(main)
