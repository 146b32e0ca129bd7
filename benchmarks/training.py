#!/usr/bin/env python3
r"""Measure a training step of the Zipformer, part by part, dense and through a pathway.

Usage:

  OMP_NUM_THREADS=2 benchmarks/training.py --sizes "small medium" --write 1

A batch is 60 s of audio: 12 utterances of 5 s with 20 tokens each, vocabulary 500, features and tokens random. A step
is what the trainer does: forward, backward, ScaledAdam with its clipping. Every round runs one step of every system in
turn, from the same random numbers. Seconds mean something on a machine that does nothing else, where threads that wait
for each other should spin, as they do unless OMP_WAIT_POLICY says otherwise. What the processor spent (its seconds,
summed over threads, spinning included) and ratios of it suffer less from other jobs.
"""

import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from random_masks import random_masks
from tables import put_table
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.activation import PathwayModule

VOCAB_SIZE = 500
AGE = 250  # updates of the optimizer before the first step
UTTERANCES, FRAMES, TOKENS = 12, 500, 20
LANGUAGES = ("en", "fr", "it", "nl")
PARTS = ("encoder forward", "loss", "loss backward", "encoder backward", "optimizer")
SYSTEMS = ("dense", "pathways")
# Seconds of icefall's Zipformer of the same sizes for such a batch, with ScaledAdam: two threads of a two-core machine
# without GPU, undisturbed, torch 1.13.1, float32. By size: the parts and the whole step.
ICEFALL = {"small": (0.97, 0.024, 0.062, 0.91, 0.040, 2.02), "medium": (1.61, 0.026, 0.061, 1.82, 0.126, 3.67)}
REPORT = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    sizes: str = "small medium"
    """Sizes of the Zipformer."""

    rounds: int = 5
    """Steps of every system that are measured, after one that is not."""

    sparsity: float = 0.7
    """Of the pathways."""

    write: bool = False
    """Put the figures into benchmarks/training.md."""


class Stopwatch:
    """What the clock and the processor say at the borders between the parts of steps."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self, *_: object) -> None:
        """A part ends here. Any arguments are taken, so that this can be a hook."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def parts(self) -> list[tuple[float, float]]:
        """Seconds of the clock and of the processor between the marks, which are forgotten."""
        found = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.marks, self.marks[1:], strict=False)]
        self.marks = []
        return found


class Trainee:
    """A model in training, whose steps are watched.

    Args:
      size: Of the Zipformer.
      sparsity: Of each language's random mask; None trains the dense model.
    """

    def __init__(self, size: str, sparsity: float | None) -> None:
        torch.manual_seed(42)
        model = build_model(ModelConfig(encoder_type="zipformer", zipformer=size), VOCAB_SIZE).train()
        self.masks = None if sparsity is None else random_masks(model, LANGUAGES, sparsity)
        self.module = PathwayModule(model, self.masks)
        self.optimizer = ScaledAdam(model.named_parameters())
        self._age()
        self.watch = Stopwatch()
        # Of all that the encoder's output goes to, this layer comes first, and its gradient is complete last.
        model.decoder.register_forward_pre_hook(self.watch.mark)
        model.simple_am_proj.register_forward_pre_hook(self._watch_gradient)

    def _age(self) -> None:
        """Bring the optimizer to where most of a training is: beyond the corrections of young moments."""
        group = self.optimizer.param_groups[0]
        lr, group["lr"] = group["lr"], 0.0
        for parameter in group["params"]:
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        self.optimizer.activate(self.masks, LANGUAGES[0])
        for _ in range(AGE):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        group["lr"] = lr

    def _watch_gradient(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(self.watch.mark)

    def step(self, seed: int) -> list[tuple[float, float]]:
        """One step; returns seconds of the clock and of the processor for each of `PARTS`."""
        x, x_lens, y, y_lens = _batch()
        torch.manual_seed(seed)
        self.watch.mark()
        losses = self.module(LANGUAGES[0], x, x_lens, y, y_lens, prune_range=5)
        self.watch.mark()
        ((0.5 * losses.simple + losses.pruned) / (UTTERANCES * TOKENS)).backward()
        self.watch.mark()
        self.optimizer.activate(self.masks, LANGUAGES[0])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.watch.mark()
        return self.watch.parts()


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(UTTERANCES, FRAMES, 80, generator=generator) - 7
    y = torch.randint(1, VOCAB_SIZE, (UTTERANCES, TOKENS), generator=generator)
    return x, torch.full((UTTERANCES,), FRAMES), y, torch.full((UTTERANCES,), TOKENS)


def measure(size: str, config: BenchmarkConfig) -> dict[str, list[list[tuple[float, float]]]]:
    """For both systems, what every round's step took, part by part."""
    trainees = {"dense": Trainee(size, None), "pathways": Trainee(size, config.sparsity)}
    found: dict[str, list[list[tuple[float, float]]]] = {system: [] for system in SYSTEMS}
    for round_ in tqdm(range(config.rounds + 1), f"measuring {size}", unit="round"):
        for system, trainee in trainees.items():
            parts = trainee.step(seed=round_)
            if round_ > 0:  # the first one sets things up
                found[system].append(parts)
    return found


def _medians(rounds: list[list[tuple[float, float]]], clock: int) -> list[float]:
    """The median of every part and, last, of the whole step; clock 0 is the wall's, 1 the processor's."""
    steps = [[part[clock] for part in parts] for parts in rounds]
    return [statistics.median(values) for values in zip(*([*step, sum(step)] for step in steps), strict=True)]


def rows_of(size: str, figures: dict[str, list[list[tuple[float, float]]]]) -> list[list[str]]:
    """The rows of the table for one size."""

    def row(name: str, values: tuple[float, ...] | list[float], peer: float | None) -> list[str]:
        ratio = "" if peer is None else f"{values[-1] / peer:.2f}"
        return [name, *(f"{value:.3f}" for value in values), ratio]

    peer = ICEFALL.get(size)
    rows = [row(f"{size}, {system}", _medians(figures[system], 0), peer and peer[-1]) for system in SYSTEMS]
    rows += [row(f"{size}, {system}, core-seconds", _medians(figures[system], 1), None) for system in SYSTEMS]
    return rows if peer is None else [*rows, row(f"{size}, icefall", peer, None)]


def overhead_row(size: str, figures: dict[str, list[list[tuple[float, float]]]]) -> list[str]:
    """Pathways over dense: median of the rounds' ratios, by the clock and by the processor."""
    ratios = []
    for clock in (0, 1):
        steps = {system: [sum(part[clock] for part in parts) for parts in figures[system]] for system in SYSTEMS}
        pairs = zip(steps["pathways"], steps["dense"], strict=True)
        ratios.append(statistics.median(masked / dense for masked, dense in pairs))
    return [size, *(f"{ratio:.3f}" for ratio in ratios)]


def main() -> None:
    """Read the options, measure, print the tables."""
    config = parse(BenchmarkConfig, __doc__)
    figures = {size: measure(size, config) for size in config.sizes.split()}
    steps = [row for size, found in figures.items() for row in rows_of(size, found)]
    overhead = [overhead_row(size, found) for size, found in figures.items()]
    tables: list[tuple[str, list[str], list[list[str]]]] = [
        ("steps", ["", *PARTS, "step", "of icefall's"], steps),
        ("overhead", ["", "by the clock", "by the processor"], overhead),
    ]
    for name, header, rows in tables:
        print(tabulate(rows, header, tablefmt="pipe", disable_numparse=True), end="\n\n")
        if config.write:
            put_table(REPORT, name, header, rows)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    run_script(main)
