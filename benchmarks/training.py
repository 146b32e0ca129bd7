#!/usr/bin/env python3
r"""Benchmark the parts of a Zipformer training step, dense and with masks.

Usage:

  OMP_NUM_THREADS=2 benchmarks/training.py --sizes "small medium" --write 1

A batch is 60 s of audio: 12 utterances of 5 s with 20 tokens each, vocabulary 500, with random features and tokens. A
step consists of forward pass, backward pass, and ScaledAdam with its clipping, as in the trainer. Every round runs one
step of each system, with the same random numbers. Run it on an otherwise idle machine, where waiting threads should
spin, as they do unless OMP_WAIT_POLICY is PASSIVE. CPU seconds (summed over threads, including spinning) and their
ratios depend less on other jobs.
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
# Seconds of icefall's Zipformer of the same sizes for such a batch, with ScaledAdam: two threads of a two-core machine
# without GPU, undisturbed, torch 1.13.1, float32. By size: the parts and the whole step.
ICEFALL = {"small": (0.97, 0.024, 0.062, 0.91, 0.040, 2.02), "medium": (1.61, 0.026, 0.061, 1.82, 0.126, 3.67)}
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
    """Write the results to benchmarks/training.md."""


class Stopwatch:
    """Wall-clock and CPU time of the parts of a step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self, *_: object) -> None:
        """End a part. Arguments are ignored, so that this method can be a hook."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def parts(self) -> list[tuple[float, float]]:
        """Return wall-clock and CPU seconds between the marks, and clear the marks."""
        seconds = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:], strict=False)]
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

    def __call__(self, seed: int) -> list[tuple[float, float]]:
        """Run a step, and return wall-clock and CPU seconds of each of `PARTS`."""
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


def measure(size: str, config: BenchmarkConfig) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the times of all parts in every round, for both systems."""
    steps = {"dense": TimedStep(size, None), "pathways": TimedStep(size, config.sparsity)}
    times: dict[str, list[list[tuple[float, float]]]] = {system: [] for system in SYSTEMS}
    for round_ in tqdm(range(config.rounds + 1), f"measuring {size}", unit="round"):
        for system, step in steps.items():
            parts = step(seed=round_)
            if round_ > 0:  # the first step is for warm-up
                times[system].append(parts)
    return times


def _medians(rounds: list[list[tuple[float, float]]], clock: int) -> list[float]:
    """Return the median of each part and, last, of the whole step; `clock` is 0 for wall-clock, 1 for CPU seconds."""
    steps = [[part[clock] for part in parts] for parts in rounds]
    return [statistics.median(values) for values in zip(*([*step, sum(step)] for step in steps), strict=True)]


def rows_of(size: str, figures: dict[str, list[list[tuple[float, float]]]]) -> list[list[str]]:
    """Return the rows of the table for one size."""

    def row(name: str, values: tuple[float, ...] | list[float], peer: float | None) -> list[str]:
        ratio = "" if peer is None else f"{values[-1] / peer:.2f}"
        return [name, *(f"{value:.3f}" for value in values), ratio]

    peer = ICEFALL.get(size)
    rows = [row(f"{size}, {system}", _medians(figures[system], 0), peer and peer[-1]) for system in SYSTEMS]
    rows += [row(f"{size}, {system}, core-seconds", _medians(figures[system], 1), None) for system in SYSTEMS]
    return rows if peer is None else [*rows, row(f"{size}, icefall", peer, None)]


def overhead_row(size: str, figures: dict[str, list[list[tuple[float, float]]]]) -> list[str]:
    """Return the median over rounds of the ratio of pathways to dense, for wall-clock and CPU seconds."""
    ratios = []
    for clock in (0, 1):
        steps = {system: [sum(part[clock] for part in parts) for parts in figures[system]] for system in SYSTEMS}
        pairs = zip(steps["pathways"], steps["dense"], strict=True)
        ratios.append(statistics.median(masked / dense for masked, dense in pairs))
    return [size, *(f"{ratio:.3f}" for ratio in ratios)]


def main() -> None:
    """Run the benchmark and print the tables."""
    config = parse(BenchmarkConfig, __doc__)
    figures = {size: measure(size, config) for size in config.sizes.split()}
    steps = [row for size, times in figures.items() for row in rows_of(size, times)]
    overhead = [overhead_row(size, times) for size, times in figures.items()]
    tables: list[tuple[str, list[str], list[list[str]]]] = [
        ("steps", ["", *PARTS, "step", "ratio to icefall"], steps),
        ("overhead", ["", "wall clock", "CPU seconds"], overhead),
    ]
    for name, header, rows in tables:
        print_table(header, rows, REPORT if config.write else None, name)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    run_script(main)
