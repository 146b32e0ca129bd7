#!/usr/bin/env python3
r"""Benchmark the memory of training for different numbers of languages.

Usage:

  OMP_NUM_THREADS=1 benchmarks/memory.py --size medium --num-languages "1 4 8 32" --write 1

For each number of languages, a separate process creates a Zipformer, random masks, the optimizer and the running
average, and runs an update of every language: the first on two utterances of 5 s, the others with random gradients. The
size of an object is the size of its tensors; the peak is the maximum resident memory, including libraries.
"""

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path

import torch
from random_masks import SPARSITY, random_masks
from tables import print_table
from torch import Tensor

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.torch_compat import num_storage_bytes

VOCAB_SIZE = 500
OBJECTS = ("weights", "gradients", "optimizer", "average", "masks")
REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class MemoryConfig:
    """Options of the benchmark."""

    size: str = "medium"
    """Size of the Zipformer."""

    num_languages: str = "1 4 8 32"
    """Numbers of languages; each has a random mask of 70 % sparsity."""

    write: bool = False
    """Write the results to benchmarks/memory.md."""


def measure(size: str, num_languages: int) -> dict[str, float]:
    """Return the megabytes of each of `OBJECTS` after an update of every language, and "peak", for this process."""
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
    # Views of the flat buffers of the optimizer are counted once.
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
    """Return the size of all tensors in 10^6 bytes; tensors that share storage count once."""
    return num_storage_bytes(tensors) / 1e6


def _put_sizes(queue: "Queue[dict[str, float]]", size: str, num_languages: int) -> None:
    queue.put(measure(size, num_languages))


def measure_in_process(size: str, num_languages: int) -> dict[str, float]:
    """Return the result of `measure` in a separate process."""
    context = get_context("spawn")
    queue: Queue[dict[str, float]] = context.Queue()
    process = context.Process(target=_put_sizes, args=(queue, size, num_languages))
    process.start()
    sizes = queue.get()
    process.join()
    return sizes


def main() -> None:
    """Run the benchmark and print the table."""
    config = parse(MemoryConfig, __doc__)
    header = ["languages", *OBJECTS, "total", "peak"]
    rows = []
    for count in map(int, config.num_languages.split()):
        sizes = measure_in_process(config.size, count)
        objects = [sizes[name] for name in OBJECTS]
        rows.append([str(count), *(f"{value:.0f}" for value in [*objects, sum(objects), sizes["peak"]])])
    print_table(header, rows, REPORT if config.write else None, "languages")


if __name__ == "__main__":
    run_script(main)
