#!/usr/bin/env python3
r"""Soak test: kill and restart a training run repeatedly, and compare its result with an uninterrupted run.

Usage, with any options of train.py after `--`:

  benchmarks/soak.py --exp-dir exp/soak --minutes 30 -- --manifest-dir data/fbank --num-updates 2000 --save-every-n 20

The same training runs twice in parallel: once uninterrupted, and once killed at random times (SIGKILL to all of its
processes, or SIGTERM, after which it saves a checkpoint) and restarted with the same command. Weights, averages,
optimizer state, masks and gradients of the last checkpoints must be bitwise identical.
"""

import math
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.options import parse, run_script
from icefall_pathways.training import runs  # noqa: F401  (imported for the forked runs)

PARTS = ("model", "model_avg", "optimizer", "masks", "gradients")
TRAIN = Path(__file__).resolve().parents[1] / "egs/mls/ASR/pruned_transducer_pathways/train.py"


@dataclass(frozen=True)
class SoakConfig:
    """Options of the soak test."""

    exp_dir: Path = Path("soak")
    """Folder for both runs; it must be empty or missing."""

    minutes: float = 30.0
    """Duration of the kills; afterwards the run continues to its end."""

    longest_life: float = 60.0
    """Maximum seconds from a start to the next kill."""

    sigterm_share: float = 0.2
    """Share of the kills that are SIGTERM."""

    seed: int = 0
    """Seed of the times and signals."""

    fork: bool = False
    """Fork the runs from this process to save import time, which short runs on a busy machine mostly consist of."""


def soak(config: SoakConfig, options: list[str]) -> str:
    """Run the uninterrupted and the killed training, compare them, and return a summary.

    Raises:
      ValueError: The folder is not empty, a run failed, or the results differ.
    """
    if config.exp_dir.exists() and any(config.exp_dir.iterdir()):
        raise ValueError(f"{config.exp_dir} is not empty, and its run would be resumed: choose another folder")
    start_time = time.monotonic()
    uninterrupted, killed = config.exp_dir / "uninterrupted", config.exp_dir / "killed"
    start = partial(start_fork if config.fork else start_process, options=options)
    reference = start(uninterrupted)
    try:
        kills = _run_and_kill(config, partial(start, killed))
        minutes = (time.monotonic() - start_time) / 60
        _wait_for_success(reference)
    finally:
        reference.kill()
    update, differing = compare(uninterrupted, killed)
    if differing:
        raise ValueError(f"after {kills} the runs differ in {len(differing)} tensors: {', '.join(differing[:5])}, ...")
    counts = ", ".join(f"{count} {name}" for name, count in kills.items())
    return f"{counts} in {minutes:.1f} minutes; after update {update} {', '.join(PARTS)} are bitwise identical"


def _run_and_kill(config: SoakConfig, start: Callable[[], "Process"]) -> dict[str, int]:
    rng = random.Random(config.seed)
    kills = {"SIGKILL": 0, "SIGTERM": 0}
    deadline = time.monotonic() + 60 * config.minutes
    while True:
        process = start()
        life = rng.uniform(1.0, config.longest_life)
        if time.monotonic() + life > deadline:
            _wait_for_success(process)
            return kills
        try:
            process.wait(life)
        except subprocess.TimeoutExpired:
            name = "SIGTERM" if rng.random() < config.sigterm_share else "SIGKILL"
            kills[name] += 1
            os.killpg(process.pid, signal.Signals[name])
            process.wait()
        else:
            _wait_for_success(process)
            return kills


class Fork:
    """A forked training process, with the methods of `subprocess.Popen` that this script needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float = math.inf) -> int:
        """Return the exit status.

        Raises:
          subprocess.TimeoutExpired: The process is still running after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(TRAIN), timeout)
            else:
                time.sleep(0.05)
        return self.returncode

    def kill(self) -> None:
        """Kill the process group, unless the process has exited."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)


Process = subprocess.Popen[bytes] | Fork


def start_fork(exp_dir: Path, options: list[str]) -> Process:
    """Start train.py in a fork of this process, with its output in EXP_DIR.log."""
    exp_dir.parent.mkdir(parents=True, exist_ok=True)
    if pid := os.fork():
        return Fork(pid)
    code = 1
    try:
        os.setsid()
        with exp_dir.with_suffix(".log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = [str(TRAIN), "--exp-dir", str(exp_dir), *options]
        runpy.run_path(str(TRAIN), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(code)


def start_process(exp_dir: Path, options: list[str]) -> Process:
    """Start train.py in a new process, with its output in EXP_DIR.log."""
    log = exp_dir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), "--exp-dir", str(exp_dir), *options]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _wait_for_success(process: Process) -> None:
    if status := process.wait():
        raise ValueError(f"a run failed with exit status {status}: see the logs next to the folders of the runs")


def compare(uninterrupted: Path, killed: Path) -> tuple[int, list[str]]:
    """Return the last update, and the names of the tensors that differ between the last checkpoints of two folders."""
    ends = [checkpoints.find(layout.batch_checkpoints(folder)[-1])[1] for folder in (uninterrupted, killed)]
    flat = [_flatten(end) for end in ends]
    names = flat[0].keys() | flat[1].keys()
    differing = [
        name
        for name in sorted(names)
        if name not in flat[0] or name not in flat[1] or not torch.equal(flat[0][name], flat[1][name])
    ]
    return ends[0]["update"], differing


def _flatten(checkpoint: checkpoints.Checkpoint) -> dict[str, torch.Tensor]:
    tensors = {"update": torch.tensor(checkpoint["update"])}
    for part in PARTS:
        for name, value in checkpoint[part].items():
            values = value if isinstance(value, dict) else {"": value}
            tensors |= {f"{part}/{name}/{key}": tensor for key, tensor in values.items()}
    return tensors


def main() -> None:
    """Run the soak test."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    print(soak(parse(SoakConfig, __doc__, sys.argv[1:split]), sys.argv[split + 1 :]))


if __name__ == "__main__":
    run_script(main)
