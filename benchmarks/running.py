#!/usr/bin/env python3
r"""Benchmark the updates of the trainer: time of each part, waiting time for data, operators.

Usage, after `make demo`, or after its first stage has prepared the embedded corpus:

  OMP_NUM_THREADS=2 benchmarks/running.py --write 1

The trainer runs with random masks of 70 % sparsity on the demo's corpus: an Emformer with half a million parameters and
batches of 15 s, and a Zipformer with 5 M parameters and batches of 60 s; each with stored and with on-the-fly features,
and with 0, 1 and 2 worker processes. Then torch's profiler records some updates.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from random_masks import SPARSITY, random_masks
from tables import print_table
from torch.profiler import ProfilerActivity, profile

from icefall_pathways.data.batch import Batch
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import codes_of
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import parse, run_script
from icefall_pathways.training.callbacks import Callback, UpdateResult
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig
from icefall_pathways.training.objective import Objective
from icefall_pathways.training.train_state import TrainState
from icefall_pathways.training.trainer import Trainer

REPORT = Path(__file__).with_suffix(".md")
RECIPE = Path(__file__).resolve().parents[1] / "egs/mls/ASR"
PARTS = ("waiting for data", "forward", "backward", "optimizer", "other")
NUM_OPERATORS = 14  # rows of a profile

_EMFORMER = ModelConfig(
    num_encoder_layers=6,
    encoder_dim=64,
    nhead=4,
    dim_feedforward=256,
    cnn_module_kernel=15,
    decoder_dim=64,
    joiner_dim=64,
    subsampling_channels="8,32",
    left_context_length=64,
    dropout=0.0,
)
# The model, seconds of audio per batch, and further training options.
CASES: dict[str, tuple[ModelConfig, float, dict[str, Any]]] = {
    "0.5M": (_EMFORMER, 15.0, {"ctc_loss_scale": 1.0, "lr_schedule": "linear", "base_lr": 0.0015}),
    "5M": (ModelConfig(encoder_type="zipformer", zipformer="small"), 60.0, {}),
}


@dataclass(frozen=True)
class RunningConfig:
    """Options of the benchmark."""

    cases: str = "0.5M 5M"
    """Models to measure: the Emformer with half a million parameters, and the Zipformer with 5 M."""

    recipe_dir: Path = RECIPE
    """Folder that contains data/demo and download/mini."""

    seconds: float = 10.0
    """Duration of each measurement."""

    warm_up: int = 10
    """Updates before the measurement."""

    workers: str = "0 1 2"
    """Numbers of worker processes that load batches."""

    write: bool = False
    """Write the results to benchmarks/running.md."""


class DoneError(Exception):
    """Raised at the end of the measurement to stop the training."""


class UpdateTimer(Callback):
    """Time the parts of updates, and stop the training after some seconds.

    Args:
      trainer: Its callbacks are replaced by this one: it does not validate, log or save.
      warm_up: Updates before the first that is timed.
      seconds: Duration of the measurement.

    Attributes:
      shares: Share of the time spent on each of `PARTS`.
      update_seconds: Mean duration of an update.
    """

    def __init__(self, trainer: Trainer, warm_up: int, seconds: float) -> None:
        self.shares: dict[str, float] = {}
        self.update_seconds = 0.0
        self._warm_up = warm_up
        self._duration = seconds
        self._seconds: dict[str, float] = defaultdict(float)
        self._start = self._update_start = 0.0
        objective, optimizer = trainer.update_step.objective, trainer.state.optimizer
        trainer.update_step.objective = _TimedObjective(objective, self._seconds)  # type: ignore[assignment]
        optimizer.step = _timed(optimizer.step, self._seconds, "optimizer")  # type: ignore[method-assign]
        trainer.callbacks[:] = [self]

    def on_update_start(self, state: TrainState, batches: Sequence[Batch], wait_seconds: float) -> None:
        """Add the time spent waiting for data."""
        self._seconds["waiting for data"] += wait_seconds
        self._update_start = time.monotonic()

    def on_backward_end(self, state: TrainState) -> None:
        """Add the time of the forward and backward passes."""
        self._seconds["forward and backward"] += time.monotonic() - self._update_start

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Start the measurement after the warm-up; stop the training when the time is over."""
        if state.update == self._warm_up:
            self._seconds.clear()
            self._start = time.monotonic()
        elif state.update > self._warm_up and (elapsed := time.monotonic() - self._start) > self._duration:
            self.update_seconds = elapsed / (state.update - self._warm_up)
            parts = self._seconds
            backward = parts["forward and backward"] - parts["forward"]
            known = (parts["waiting for data"], parts["forward"], backward, parts["optimizer"])
            shares = [seconds / elapsed for seconds in known]
            self.shares = dict(zip(PARTS, [*shares, 1 - sum(shares)], strict=True))
            raise DoneError


class _TimedObjective:
    """An objective that measures its time."""

    def __init__(self, objective: Objective, seconds: dict[str, float]) -> None:
        self.autocast = objective.autocast
        self._call = _timed(objective, seconds, "forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


class UpdateProfiler(Callback):
    """Profile some updates, and stop the training after them.

    Args:
      profiler: torch's profiler.
      first: The first profiled update, from 1.
      num_updates: Number of profiled updates.
    """

    def __init__(self, profiler: profile, first: int, num_updates: int) -> None:
        self._profiler = profiler
        self._first = first
        self._end = first + num_updates

    def on_update_start(self, state: TrainState, batches: Sequence[Batch], wait_seconds: float) -> None:
        """Start or stop the profiler if it is due."""
        if state.update == self._first:
            self._profiler.start()
        elif state.update == self._end:
            self._profiler.stop()
            raise DoneError


def _timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        result = function(*args, **kwargs)
        seconds[name] += time.monotonic() - start
        return result

    return timed


@contextmanager
def make_trainer(case: str, on_the_fly: bool, workers: int) -> Iterator[Trainer]:
    """Create a trainer for the demo's corpus with random masks; its files are temporary."""
    model_config, seconds, options = CASES[case]
    with TemporaryDirectory() as folder:
        training = TrainingConfig(
            exp_dir=Path(folder),
            bpe_model=Path("data/demo/lang_bpe_100/bpe.model"),
            num_updates=10**6,
            tensorboard=False,
        )
        data = DataConfig(
            manifest_dir=Path("data/demo/fbank"),
            max_duration=seconds,
            on_the_fly_feats=on_the_fly,
            num_workers=workers,
            sampling_temperature=2.0,
        )
        tokenizer = Tokenizer(training.tokenizer_path)
        model_config = replace(model_config, ctc_head=options.get("ctc_loss_scale", 0.0) > 0)
        torch.manual_seed(42)
        model = build_model(model_config, tokenizer.vocab_size)
        masks = random_masks(model, codes_of(data.languages), SPARSITY)
        config = ExperimentConfig(replace(training, **options), data, model_config)
        yield Trainer(config, model, SpeechDataModule(data, tokenizer), tokenizer, Rank(), masks)


def measure(case: str, config: RunningConfig) -> tuple[list[list[str]], list[str]]:
    """Return rows with the share of waiting time, and the shares of the parts of an update with stored features."""
    rows, parts = [], []
    for on_the_fly in (False, True):
        for workers in config.workers.split():
            with make_trainer(case, on_the_fly, int(workers)) as trainer:
                timer = UpdateTimer(trainer, config.warm_up, config.seconds)
                with suppress(DoneError):
                    trainer.run()
            kind = "on the fly" if on_the_fly else "stored"
            waiting = 100 * timer.shares["waiting for data"]
            rows.append([case, kind, workers, f"{timer.update_seconds:.3f}", f"{waiting:.1f} %"])
            print(*rows[-1], sep="\t", flush=True)
            if not on_the_fly:
                parts = [case, *(f"{100 * timer.shares[part]:.1f} %" for part in PARTS)]
    return rows, parts


def profile_operators(case: str, config: RunningConfig) -> list[list[str]]:
    """Return rows of the operators with the largest share of time in torch's profile."""
    updates, profiler = 10, profile(activities=[ProfilerActivity.CPU])
    with make_trainer(case, False, 2) as trainer, suppress(DoneError):
        trainer.callbacks[:] = [UpdateProfiler(profiler, config.warm_up + 1, updates)]
        trainer.run()
    events_by_time = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events_by_time)

    def row(name: str, events: Sequence[Any]) -> list[str]:
        share = sum(event.self_cpu_time_total for event in events) / total
        return [case, name, f"{100 * share:.1f} %", f"{sum(event.count for event in events) / updates:.0f}"]

    rows = [row(event.key.removeprefix("aten::"), [event]) for event in events_by_time[:NUM_OPERATORS]]
    return [*rows, row("all others", events_by_time[NUM_OPERATORS:])]


def main() -> None:
    """Run the benchmark and print the tables."""
    config = parse(RunningConfig, __doc__)
    os.chdir(config.recipe_dir)
    measured = [measure(case, config) for case in config.cases.split()]
    tables: list[tuple[str, list[str], list[list[str]]]] = [
        (
            "waiting",
            ["", "features", "workers", "s / update", "waiting"],
            [row for rows, _ in measured for row in rows],
        ),
        ("parts", ["", *PARTS], [parts for _, parts in measured]),
        (
            "operators",
            ["", "operator", "share of time", "calls / update"],
            [row for case in config.cases.split() for row in profile_operators(case, config)],
        ),
    ]
    for name, header, rows in tables:
        print_table(header, rows, REPORT if config.write else None, name)


if __name__ == "__main__":
    run_script(main)
