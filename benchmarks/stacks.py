#!/usr/bin/env python3
r"""Compare the two stacks: CPU time of training steps and of eager chunks, with torch 1.13.1 and the current torch.

Usage, with both stacks installed (`make env STACK=reference`, `make env STACK=current`):

  OMP_NUM_THREADS=1 benchmarks/stacks.py --write 1

Each stack runs in a process of its own; the processes take turns. Models have random weights and are dense. The table
has the processor time of one thread, medians over rounds, and the median of the ratios of the rounds.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tables import print_table
from tqdm import tqdm

from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import PositiveInt

ROOT = Path(__file__).resolve().parents[1]
REPORT = Path(__file__).with_suffix(".md")
STACKS = (".venv", ".venv-current")
CASES = ("stream micro 1", "stream zipformer-5M 1", "stream emformer-5M 1", "stream zipformer-5M 16", "step micro")
_CHUNKS = 16
_WORKER = "--worker"


@dataclass(frozen=True)
class StacksConfig:
    """Options of the benchmark."""

    rounds: PositiveInt = 9
    """Measurements of each stack, after one for warm-up."""

    write: bool = False
    """Write the table to benchmarks/stacks.md."""


def main(config: StacksConfig) -> None:
    """Print the table."""
    workers = [_start_worker(ROOT / stack / "bin/python") for stack in STACKS]
    rows = []
    for case in CASES:
        rounds = tqdm(range(config.rounds + 1), f"measuring {case}", unit="round")
        times = [[_measure(worker, case) for worker in workers] for _ in rounds][1:]
        medians = [f"{1e3 * statistics.median(column):.1f}" for column in zip(*times, strict=True)]
        rows.append([case, *medians, f"{statistics.median(new / old for old, new in times):.2f}"])
    for worker in workers:
        worker.communicate()
    print_table(["case", "reference, ms", "current, ms", "ratio"], rows, REPORT if config.write else None, "stacks")


def _start_worker(python: Path) -> "subprocess.Popen[str]":
    if not python.exists():
        raise ValueError(f"no {python}: set up both stacks with STACK=reference make env and STACK=current make env")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([python, __file__, _WORKER], stdin=pipe, stdout=pipe, text=True, env=environment)


def _measure(worker: "subprocess.Popen[str]", case: str) -> float:
    assert worker.stdin is not None and worker.stdout is not None
    with suppress(BrokenPipeError):  # it has ended, which the next line notices
        print(case, file=worker.stdin, flush=True)
    if not (seconds := worker.stdout.readline()):
        raise ValueError(f"the measurement of {case!r} failed: {worker.args} ended; see its message above")
    return float(seconds)


def work() -> None:
    """Run the cases that the standard input names, and print the seconds of each: of a step, or per chunk."""
    functions: dict[str, Callable[[], int]] = {}
    for line in sys.stdin:
        kind, *words = line.split()
        if line not in functions:
            functions[line] = (_step if kind == "step" else _stream)(*words)
        start = time.process_time()
        count = functions[line]()
        print((time.process_time() - start) / count, flush=True)


def _step(size: str) -> Callable[[], int]:
    """Return a function that runs one training step; see `training.py`."""
    from training import TimedStep

    step = TimedStep(size, None)
    return lambda: len([step(seed=1)])


def _stream(name: str, num_streams: str) -> Callable[[], int]:
    """Return a function that encodes chunks of new streams by eager torch."""
    import torch
    from streaming_models import MODELS, VOCAB_SIZE

    from icefall_pathways.models.config import ModelConfig
    from icefall_pathways.models.transducer import build_model

    torch.manual_seed(42)
    micro = ModelConfig(encoder_type="zipformer", zipformer="micro", chunk_size="16", left_context_frames="64")
    model = build_model(micro if name == "micro" else MODELS[name], VOCAB_SIZE).eval()
    x = 2 * torch.randn(int(num_streams), model.chunk_window, 80) - 7
    lens = torch.full((len(x),), model.chunk_window)

    @torch.inference_mode()
    def encode() -> int:
        states = model.init_states(len(x))
        for _ in range(_CHUNKS):
            _, _, states = model.stream(x, lens, states)
        return _CHUNKS

    return encode


if __name__ == "__main__":
    if sys.argv[1:] == [_WORKER]:
        work()
    else:
        run_script(lambda: main(parse(StacksConfig, __doc__)))
