#!/usr/bin/env python3
r"""Benchmark the parts of a Zipformer training step, dense and with masks.

Usage:

  OMP_NUM_THREADS=1 benchmarks/training.py --sizes "small medium" --write 1

A batch is 60 s of audio: 12 utterances of 5 s with 20 tokens each, vocabulary 500, with random features and tokens. A
step consists of forward pass, backward pass, and ScaledAdam with its clipping, as in the trainer. Every round runs one
step of each system, with the same random numbers. The table has CPU seconds, medians over rounds, and the median of the
ratios of the rounds. Use one thread: others spin while they wait, which counts as CPU time.
"""

import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from random_masks import LANGUAGES, random_masks
from tables import print_table
from torch import Tensor, nn
from tqdm import tqdm

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.activation import PathwayModule

VOCAB_SIZE = 500
PREVIOUS_UPDATES = 250  # optimizer updates before the first step
UTTERANCES, FRAMES, TOKENS = 12, 500, 20
PARTS = ("encoder forward", "loss", "loss backward", "encoder backward", "optimizer")
SYSTEMS = ("dense", "pathways")
REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of the benchmark."""

    sizes: str = "small medium"
    """Sizes of the Zipformer."""

    rounds: int = 5
    """Measured steps of each system, after one for warm-up."""

    sparsity: float = 0.7
    """Sparsity of the random masks."""

    write: bool = False
    """Write the table to benchmarks/training.md."""


class Stopwatch:
    """CPU time of the parts of a step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self, *_: object) -> None:
        """End a part. Arguments are ignored, so that this method can be a hook."""
        self.marks.append(time.process_time())

    def parts(self) -> list[float]:
        """Return the seconds between the marks, and clear the marks."""
        seconds = [end - start for start, end in zip(self.marks, self.marks[1:], strict=False)]
        self.marks = []
        return seconds


class TimedStep:
    """A training step whose parts are timed.

    Args:
      size: Size of the Zipformer.
      sparsity: Sparsity of each language's random mask; None trains the dense model.
    """

    def __init__(self, size: str, sparsity: float | None) -> None:
        torch.manual_seed(42)
        model = build_model(ModelConfig(encoder_type="zipformer", zipformer=size), VOCAB_SIZE).train()
        self.masks = None if sparsity is None else random_masks(model, LANGUAGES, sparsity)
        self.module = PathwayModule(model, self.masks)
        self.optimizer = ScaledAdam(model.named_parameters())
        self._run_previous_updates()
        self.stopwatch = Stopwatch()
        # The first layer that reads the encoder output: the gradient of its input is the last to be complete.
        model.decoder.register_forward_pre_hook(self.stopwatch.mark)
        model.simple_am_proj.register_forward_pre_hook(self._time_gradient)

    def _run_previous_updates(self) -> None:
        """Run updates with learning rate 0, after which the optimizer no longer corrects the bias of its moments."""
        group = self.optimizer.param_groups[0]
        lr, group["lr"] = group["lr"], 0.0
        for parameter in group["params"]:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        self.optimizer.activate(self.masks, LANGUAGES[0])
        for _ in range(PREVIOUS_UPDATES):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        group["lr"] = lr

    def _time_gradient(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(self.stopwatch.mark)

    def __call__(self, seed: int) -> list[float]:
        """Run a step, and return the CPU seconds of each of `PARTS`."""
        x, x_lens, y, y_lens = _batch()
        torch.manual_seed(seed)
        self.stopwatch.mark()
        losses = self.module(LANGUAGES[0], x, x_lens, y, y_lens, prune_range=5)
        self.stopwatch.mark()
        ((0.5 * losses.simple + losses.pruned) / (UTTERANCES * TOKENS)).backward()
        self.stopwatch.mark()
        self.optimizer.activate(self.masks, LANGUAGES[0])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.stopwatch.mark()
        return self.stopwatch.parts()


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(UTTERANCES, FRAMES, 80, generator=generator) - 7
    y = torch.randint(1, VOCAB_SIZE, (UTTERANCES, TOKENS), generator=generator)
    return x, torch.full((UTTERANCES,), FRAMES), y, torch.full((UTTERANCES,), TOKENS)


def measure(size: str, config: BenchmarkConfig) -> dict[str, list[list[float]]]:
    """Return the times of all parts and, last, of the whole step in every round, for both systems."""
    steps = {"dense": TimedStep(size, None), "pathways": TimedStep(size, config.sparsity)}
    times: dict[str, list[list[float]]] = {system: [] for system in SYSTEMS}
    for round_ in tqdm(range(config.rounds + 1), f"measuring {size}", unit="round"):
        for system, step in steps.items():
            parts = step(seed=round_)
            if round_ > 0:  # the first step is for warm-up
                times[system].append([*parts, sum(parts)])
    return times


def rows_of(size: str, times: dict[str, list[list[float]]]) -> list[list[str]]:
    """Return the rows of the table for one size: medians of both systems, and the median ratio of pathways to dense."""
    pairs = zip(times["pathways"], times["dense"], strict=True)
    ratios = [[masked / dense for masked, dense in zip(*pair, strict=True)] for pair in pairs]
    rows = {**{system: times[system] for system in SYSTEMS}, "ratio": ratios}
    return [
        [f"{size}, {name}", *(f"{statistics.median(column):.3f}" for column in zip(*rounds, strict=True))]
        for name, rounds in rows.items()
    ]


def main() -> None:
    """Run the benchmark and print the table."""
    config = parse(BenchmarkConfig, __doc__)
    rows = [row for size in config.sizes.split() for row in rows_of(size, measure(size, config))]
    print_table(["", *PARTS, "step"], rows, REPORT if config.write else None, "steps")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    run_script(main)
