#!/usr/bin/env python3
r"""Kill a training again and again, and see whether it ends as one that was left alone.

Usage, with any options of train.py after `--`:

  benchmarks/soak.py --exp-dir exp/soak --minutes 30 -- --manifest-dir data/fbank --num-updates 2000 --save-every-n 20

The same training runs twice, side by side: once left alone, and once killed at random moments (SIGKILL to all of its
processes, or SIGTERM, which lets it save), each time started again with the same command. What the last checkpoints
hold (weights, averages, optimizer, masks, gradients) must be the same, bit for bit.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from icefall_pathways.options import parse, run_script
from icefall_pathways.training import checkpoints

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


def soak(config: SoakConfig, options: list[str]) -> str:
    """Run both; returns what happened.

    Raises:
      ValueError: A run failed by itself, or they ended differently.
    """
    if config.exp_dir.exists() and any(config.exp_dir.iterdir()):
        raise ValueError(f"{config.exp_dir} is not empty: a run that is there already would go on; name another folder")
    begin = time.monotonic()
    calm, killed = config.exp_dir / "calm", config.exp_dir / "killed"
    left_alone = _start(calm, options)
    try:
        kills = _run_and_kill(config, killed, options)
        minutes = (time.monotonic() - begin) / 60
        _end_well(left_alone)
    finally:
        left_alone.kill()
    update, differing = _compare(calm, killed)
    if differing:
        raise ValueError(f"after {kills} the runs differ in {', '.join(differing[:5])} and {len(differing)} in all")
    told = ", ".join(f"{number} {name}" for name, number in kills.items())
    return f"{told} in {minutes:.1f} minutes; after update {update} {', '.join(_PARTS)} are bit for bit the same"


def _run_and_kill(config: SoakConfig, exp_dir: Path, options: list[str]) -> dict[str, int]:
    rng = random.Random(config.seed)
    kills = {"SIGKILL": 0, "SIGTERM": 0}
    deadline = time.monotonic() + 60 * config.minutes
    while True:
        process = _start(exp_dir, options)
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


def _start(exp_dir: Path, options: list[str]) -> subprocess.Popen[bytes]:
    log = exp_dir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), "--exp-dir", str(exp_dir), *options]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _end_well(process: subprocess.Popen[bytes]) -> None:
    if status := process.wait():
        raise ValueError(f"a run ended with status {status}: see the logs beside the runs' folders")


def _compare(calm: Path, killed: Path) -> tuple[int, list[str]]:
    """The last update of both runs, and the names of what differs."""
    ends = [checkpoints.find(checkpoints.batch_checkpoints(folder)[-1])[1] for folder in (calm, killed)]
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
