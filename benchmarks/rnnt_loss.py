#!/usr/bin/env python3
r"""Benchmark the pruned RNN-T loss of k2 and the built-in one.

Usage:

  OMP_NUM_THREADS=1 benchmarks/rnnt_loss.py --write 1

A step computes the simple loss, the pruning ranges, the joiner, the pruned loss, and all gradients, of random inputs.
It is measured with a joiner that only adds its inputs, to measure little but the losses, and with the joiner of the
model. Every round runs one step of each implementation, so that their ratio depends little on other jobs. Peak memory
is the peak of a separate process during its first full-size step, minus its memory before that step.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tables import print_table
from torch import Tensor
from tqdm import tqdm

from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.losses import boundaries, pruned_loss, simple_loss
from icefall_pathways.options import parse, run_script

VOCAB_SIZE, JOINER_DIM, PRUNE_RANGE = 500, 512, 5
LM_SCALE, AM_SCALE = 0.25, 0.0
IMPLEMENTATIONS: tuple[Literal["k2"], Literal["builtin"]] = ("k2", "builtin")
JOINERS = ("sum", "model")
REPORT = Path(__file__).with_suffix(".md")


class Batch(NamedTuple):
    """Size of a batch; an encoder frame is 40 ms."""

    utterances: int
    frames: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.utterances} x {0.04 * self.frames:g} s, {self.tokens} tokens"


BATCHES = (Batch(12, 125, 20), Batch(3, 500, 80))


@dataclass(frozen=True)
class RnntLossConfig:
    """Options of the benchmark."""

    rounds: int = 20
    """Measured steps of each implementation, after one for warm-up."""

    write: bool = False
    """Write the results to benchmarks/rnnt_loss.md."""


class LossStep:
    """Forward and backward pass of the losses of random inputs.

    Args:
      batch: Size of the batch.
      joiner: One of `JOINERS`.
      implementation: One of `IMPLEMENTATIONS`.
    """

    def __init__(self, batch: Batch, joiner: str, implementation: Literal["k2", "builtin"]) -> None:
        torch.manual_seed(42)
        rows, width = batch.tokens + 1, VOCAB_SIZE if joiner == "sum" else JOINER_DIM
        self.implementation = implementation
        self.y = torch.randint(1, VOCAB_SIZE, (batch.utterances, batch.tokens))
        lens = torch.full((batch.utterances,), batch.frames)
        self.boundary = boundaries(lens, torch.full_like(lens, batch.tokens))
        sizes = ((batch.frames, VOCAB_SIZE), (rows, VOCAB_SIZE), (batch.frames, width), (rows, width))
        self.inputs = [torch.randn(batch.utterances, *size).requires_grad_() for size in sizes]
        if joiner == "sum":
            self.join: Callable[[Tensor, Tensor], Tensor] = torch.add
        else:
            model_joiner = Joiner(JOINER_DIM, JOINER_DIM, JOINER_DIM, VOCAB_SIZE)
            self.join = partial(model_joiner, project_input=False)
            self.inputs += model_joiner.output_linear.parameters()

    def __call__(self) -> tuple[list[tuple[float, float]], float]:
        """Run a step, and return wall-clock and CPU seconds of the forward and the backward pass, and the loss."""
        am, lm, joiner_am, joiner_lm = self.inputs[:4]
        marks = [(time.perf_counter(), time.process_time())]
        simple, ranges = simple_loss(
            am, lm, self.y, self.boundary, PRUNE_RANGE, AM_SCALE, LM_SCALE, self.implementation
        )
        pruned = pruned_loss(self.join, joiner_am, joiner_lm, self.y, ranges, self.boundary, self.implementation)
        marks.append((time.perf_counter(), time.process_time()))
        torch.autograd.grad(0.5 * simple + pruned, self.inputs)
        marks.append((time.perf_counter(), time.process_time()))
        seconds = [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(marks)]
        return seconds, (0.5 * simple + pruned).item()


def measure(batch: Batch, joiner: str, rounds: int) -> dict[str, list[list[tuple[float, float]]]]:
    """Return the times of forward and backward pass in every round, by implementation."""
    steps = {name: LossStep(batch, joiner, name) for name in IMPLEMENTATIONS}
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in IMPLEMENTATIONS}
    for index in tqdm(range(rounds + 1), f"measuring {batch}, joiner {joiner}", unit="round", leave=False):
        for name, step in steps.items():
            seconds, _ = step()
            if index > 0:  # the first step is for warm-up
                times[name].append(seconds)
    return times


def rows_of(batch: Batch, joiner: str, times: dict[str, list[list[tuple[float, float]]]]) -> list[list[str]]:
    """Return the rows of the table of times: medians in milliseconds, and the median ratio of the whole steps."""
    totals = {
        name: [[sum(part[clock] for part in parts) for parts in rounds] for clock in (0, 1)]
        for name, rounds in times.items()
    }
    rows = []
    for name, rounds in times.items():
        values = [statistics.median(parts[index][0] for parts in rounds) for index in (0, 1)]
        values += [statistics.median(seconds) for seconds in totals[name]]
        pairs = [zip(totals["k2"][clock], totals[name][clock], strict=True) for clock in (0, 1)]
        ratios = [f"{statistics.median(k2 / own for k2, own in pair):.2f}" for pair in pairs]
        rows.append([str(batch), joiner, name, *(f"{1000 * value:.1f}" for value in values), *ratios])
    return rows


def peak_megabytes(batch: Batch, joiner: str, implementation: Literal["k2", "builtin"]) -> float:
    """Return the memory that a step takes, in 10^6 bytes; exact only if this process has not run such a step before."""
    LossStep(Batch(1, 4, 2), joiner, implementation)()  # loads what a first step loads
    step = LossStep(batch, joiner, implementation)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident_bytes("VmRSS")
    step()
    return (_resident_bytes("VmHWM") - before) / 1e6


def _resident_bytes(name: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the current (VmRSS) or the peak memory (VmHWM); getrusage would include the peak of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak_row(batch: Batch, joiner: str) -> list[str]:
    """Return the row of the table of memory: peaks of the implementations, each in its own process, and their ratio."""
    peaks = []
    for name in IMPLEMENTATIONS:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peaks.append(pool.submit(peak_megabytes, batch, joiner, name).result())
    return [str(batch), joiner, *(f"{peak:.0f}" for peak in peaks), f"{peaks[0] / peaks[1]:.2f}"]


def main() -> None:
    """Run the benchmark and print the tables."""
    config = parse(RnntLossConfig, __doc__)
    cases = [(batch, joiner) for batch in BATCHES for joiner in JOINERS]
    times = [row for case in cases for row in rows_of(*case, measure(*case, config.rounds))]
    peaks = [peak_row(*case) for case in cases]
    columns = ["batch", "joiner"]
    time_columns = ["loss", "forward", "backward", "step", "CPU time", "k2 / loss", "k2 / loss, CPU time"]
    tables: list[tuple[str, list[str], list[list[str]]]] = [
        ("times", columns + time_columns, times),
        ("memory", [*columns, *IMPLEMENTATIONS, "k2 / builtin"], peaks),
    ]
    for name, header, rows in tables:
        print_table(header, rows, REPORT if config.write else None, name)


if __name__ == "__main__":
    run_script(main)
