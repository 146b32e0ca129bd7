#!/usr/bin/env python3
r"""Kill a training again and again, and see whether it ends as one that was left alone.

Usage, with any options of train.py after `--`:

  benchmarks/soak.py --exp-dir exp/soak --minutes 30 -- --manifest-dir data/fbank --num-updates 2000 --save-every-n 20

The same training runs twice, side by side: once left alone, and once killed at random moments (SIGKILL to all of its
processes, or SIGTERM, which lets it save), each time started again with the same command. What the last checkpoints
hold (weights, averages, optimizer, masks, gradients) must be the same, bit for bit.
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
from icefall_pathways.training import runs  # noqa: F401  (the second for the forks of this process)

_PARTS = ("model", "model_avg", "optimizer", "masks", "gradients")
TRAIN = Path(__file__).resolve().parents[1] / "egs/mls/ASR/pruned_transducer_pathways/train.py"


@dataclass(frozen=True)
class SoakConfig:
    """How long, and how rough."""

    exp_dir: Path = Path("soak")
    """Folder for both runs; empty or not there."""

    minutes: float = 30.0
    """Kill the second run for so long, if it does not end before; then it may go on to its end."""

    longest_life: float = 60.0
    """Seconds after which a run is killed at the latest."""

    sigterm_share: float = 0.2
    """Share of the kills that are SIGTERM."""

    seed: int = 0
    """Seed of the moments."""

    fork: bool = False
    """Begin runs as forks of this process, which has imported everything: on a busy machine, lives are short else."""


def soak(config: SoakConfig, options: list[str]) -> str:
    """Run both; returns what happened.

    Raises:
      ValueError: A run failed by itself, or they ended differently.
    """
    if config.exp_dir.exists() and any(config.exp_dir.iterdir()):
        raise ValueError(f"{config.exp_dir} is not empty: a run that is there already would go on; name another folder")
    begin = time.monotonic()
    calm, killed = config.exp_dir / "calm", config.exp_dir / "killed"
    start = partial(_fork if config.fork else _spawn, options=options)
    left_alone = start(calm)
    try:
        kills = _run_and_kill(config, partial(start, killed))
        minutes = (time.monotonic() - begin) / 60
        _end_well(left_alone)
    finally:
        left_alone.kill()
    update, differing = _compare(calm, killed)
    if differing:
        raise ValueError(f"after {kills} the runs differ in {', '.join(differing[:5])} and {len(differing)} in all")
    told = ", ".join(f"{number} {name}" for name, number in kills.items())
    return f"{told} in {minutes:.1f} minutes; after update {update} {', '.join(_PARTS)} are bit for bit the same"


def _run_and_kill(config: SoakConfig, start: Callable[[], "Process"]) -> dict[str, int]:
    rng = random.Random(config.seed)
    kills = {"SIGKILL": 0, "SIGTERM": 0}
    deadline = time.monotonic() + 60 * config.minutes
    while True:
        process = start()
        life = rng.uniform(1.0, config.longest_life)
        if time.monotonic() + life > deadline:
            _end_well(process)
            return kills
        try:
            process.wait(life)
        except subprocess.TimeoutExpired:
            name = "SIGTERM" if rng.random() < config.sigterm_share else "SIGKILL"
            kills[name] += 1
            os.killpg(process.pid, signal.Signals[name])
            process.wait()
        else:
            _end_well(process)
            return kills


class Fork:
    """A fork of this process that trains; what `subprocess.Popen` has of what is needed here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float = math.inf) -> int:
        """The exit status; `subprocess.TimeoutExpired` if it is still running after so many seconds."""
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
        """End it and all of its processes, if it has not ended."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)


Process = subprocess.Popen[bytes] | Fork


def _fork(exp_dir: Path, options: list[str]) -> Process:
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


def _spawn(exp_dir: Path, options: list[str]) -> Process:
    log = exp_dir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), "--exp-dir", str(exp_dir), *options]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _end_well(process: Process) -> None:
    if status := process.wait():
        raise ValueError(f"a run ended with status {status}: see the logs beside the runs' folders")


def _compare(calm: Path, killed: Path) -> tuple[int, list[str]]:
    """The last update of both runs, and the names of what differs."""
    ends = [checkpoints.find(layout.batch_checkpoints(folder)[-1])[1] for folder in (calm, killed)]
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
    for part in _PARTS:
        for name, value in checkpoint[part].items():
            values = value if isinstance(value, dict) else {"": value}
            tensors |= {f"{part}/{name}/{key}": tensor for key, tensor in values.items()}
    return tensors


def main() -> None:
    """Read the options and soak."""
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    print(soak(parse(SoakConfig, __doc__, sys.argv[1:place]), sys.argv[place + 1 :]))


if __name__ == "__main__":
    run_script(main)
