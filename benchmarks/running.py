#!/usr/bin/env python3
r"""Measure a training as it runs: what an update is spent on, and how long it waits for data.

Usage, after `make demo` or at least its first stage has prepared the embedded corpus:

  OMP_NUM_THREADS=2 benchmarks/running.py --write 1

Real updates of the real trainer, through random masks of 70 % sparsity, on the demo's data: an Emformer of half a
million parameters with batches of 15 s, and a Zipformer of 5 M with batches of 60 s. Each with stored features and with
features computed on the fly, and with 0, 1 and 2 processes that load batches. Then some updates under torch's profiler.
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
from random_masks import random_masks
from tables import put_table
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import codes_of
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.options import parse, run_script
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig
from icefall_pathways.training.launch.ranks import Rank
from icefall_pathways.training.trainer import Trainer

REPORT = Path(__file__).with_suffix(".md")
RECIPE = Path(__file__).resolve().parents[1] / "egs/mls/ASR"
SPARSITY = 0.7
PARTS = ("waiting for data", "forward", "backward", "optimizer", "the rest")
OPERATORS = 14  # that a profile names

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
# The model, seconds of audio in a batch, and what else its training is told.
CASES: dict[str, tuple[ModelConfig, float, dict[str, Any]]] = {
    "0.5M": (_EMFORMER, 15.0, {"ctc_loss_scale": 1.0, "lr_schedule": "linear", "base_lr": 0.0015}),
    "5M": (ModelConfig(encoder_type="zipformer", zipformer="small"), 60.0, {}),
}


@dataclass(frozen=True)
class RunningConfig:
    """What to measure."""

    cases: str = "0.5M 5M"
    """The Emformer of half a million parameters, and the Zipformer of 5 M."""

    recipe_dir: Path = RECIPE
    """Where data/demo and download/mini are."""

    seconds: float = 10.0
    """How long each is measured."""

    warm_up: int = 10
    """Updates before, which are not."""

    workers: str = "0 1 2"
    """Processes that load batches."""

    write: bool = False
    """Put the figures into benchmarks/running.md."""


class DoneError(Exception):
    """The end of what is measured."""


class WatchedTrainer(Trainer):
    """A trainer that neither validates nor saves, and tells where its time goes."""

    def watch(self, warm_up: int, seconds: float) -> None:
        """Train for so many updates, and then for so many seconds, which are watched."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._first, self._length = warm_up, seconds
        self.objective = _Timed(self.objective, self.seconds, "forward")  # type: ignore[assignment]
        self.optimizer.step = _timed(self.optimizer.step, self.seconds, "optimizer")  # type: ignore[assignment]
        self._forward_backward = _timed(self._forward_backward, self.seconds, "both")  # type: ignore[method-assign]
        with suppress(DoneError):
            self.run()

    def _between_updates(self, update: int, log: Any) -> None:
        if update == self._first:
            self.seconds.clear()
            self.speed.flush(update, 0.0)
            self._began = time.monotonic()
        elif update > self._first and (elapsed := time.monotonic() - self._began) > self._length:
            self.share_waited = self.speed.flush(update, 0.0)["data_wait_share"]
            self.update_seconds = elapsed / (update - self._first)
            self._share(elapsed)
            raise DoneError

    def _share(self, elapsed: float) -> None:
        forward, step = self.seconds["forward"], self.seconds["optimizer"]
        parts = (forward, self.seconds["both"] - forward, step)
        known = [self.share_waited, *(part / elapsed for part in parts)]
        self.shares = dict(zip(PARTS, [*known, 1 - sum(known)], strict=True))


class _Timed:
    """An objective that counts the time that it takes."""

    def __init__(self, objective: Any, seconds: dict[str, float], name: str) -> None:
        self.autocast = objective.autocast
        self._call = _timed(objective, seconds, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


def _timed(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.monotonic()
        result = function(*args, **kwargs)
        seconds[name] += time.monotonic() - begin
        return result

    return timed


@contextmanager
def make_trainer(case: str, on_the_fly: bool, workers: int) -> Iterator[WatchedTrainer]:
    """A trainer of the demo's data, with random masks, whose files do not stay."""
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
        yield WatchedTrainer(config, model, SpeechDataModule(data, tokenizer), tokenizer, Rank(), masks)


def waits(case: str, config: RunningConfig) -> tuple[list[list[str]], list[str]]:
    """Rows of the share of time that is spent waiting for data, and the parts of an update with stored features."""
    rows, parts = [], []
    for on_the_fly in (False, True):
        for workers in config.workers.split():
            with make_trainer(case, on_the_fly, int(workers)) as trainer:
                trainer.watch(config.warm_up, config.seconds)
            kind = "on the fly" if on_the_fly else "stored"
            rows.append([case, kind, workers, f"{trainer.update_seconds:.3f}", f"{100 * trainer.share_waited:.1f} %"])
            print(*rows[-1], sep="\t", flush=True)
            if not on_the_fly:
                parts = [case, *(f"{100 * trainer.shares[part]:.1f} %" for part in PARTS)]
    return rows, parts


def operators(case: str, config: RunningConfig) -> list[list[str]]:
    """Rows of the operators that take the most of an update, by torch's profiler."""
    with make_trainer(case, False, 2) as trainer:
        updates = 10
        train_update, profiler = trainer._train_update, profile(activities=[ProfilerActivity.CPU])

        def profiled(update: int, batches: Any) -> bool:
            if update == config.warm_up + 1:
                profiler.start()
            if update == config.warm_up + 1 + updates:
                profiler.stop()
                raise DoneError
            return train_update(update, batches)

        trainer._train_update = profiled  # type: ignore[method-assign]
        trainer.watch(config.warm_up, 1e9)
    found = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in found)

    def row(name: str, events: Sequence[Any]) -> list[str]:
        share = sum(event.self_cpu_time_total for event in events) / total
        return [case, name, f"{100 * share:.1f} %", f"{sum(event.count for event in events) / updates:.0f}"]

    first = [row(event.key.removeprefix("aten::"), [event]) for event in found[:OPERATORS]]
    return [*first, row("all others", found[OPERATORS:])]


def main() -> None:
    """Read the options, measure, print the tables."""
    config = parse(RunningConfig, __doc__)
    os.chdir(config.recipe_dir)
    measured = [waits(case, config) for case in config.cases.split()]
    tables: list[tuple[str, list[str], list[list[str]]]] = [
        (
            "waiting",
            ["", "features", "processes", "s / update", "waiting"],
            [row for rows, _ in measured for row in rows],
        ),
        ("parts", ["", *PARTS], [parts for _, parts in measured]),
        (
            "operators",
            ["", "operator", "share of time", "calls / update"],
            [row for case in config.cases.split() for row in operators(case, config)],
        ),
    ]
    for name, header, rows in tables:
        print(tabulate(rows, header, tablefmt="pipe", disable_numparse=True), end="\n\n")
        if config.write:
            put_table(REPORT, name, header, rows)


if __name__ == "__main__":
    run_script(main)
