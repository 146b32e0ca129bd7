"""Costs of a system: updates and multiply-adds of search and training, and multiply-adds of decoding."""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.files import read_json
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.multiply_adds import (
    UPDATE_FACTOR,
    decoding_per_second,
    forward_per_second,
    model_to_count,
)
from icefall_pathways.options import from_dict
from icefall_pathways.pathways.header import read_header
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.metrics import read_metrics

#: Titles of the columns of `Costs.cells`.
TITLES = (
    "updates: initial model + search + training",
    "multiply-adds of the search",
    "multiply-adds of initial model and training",
    "multiply-adds to decode 1 s of audio",
    "multiply-adds to decode 1 s, active weights only",
)
#: Explanation of the columns.
NOTE = (
    "Costs: an update counts as three forward passes over its audio; padding is not counted. A masked weight is "
    "multiplied like any other, so systems with masks execute as many multiply-adds as a dense model; the last column "
    "leaves out the products with pruned weights."
)
_PREFIXES = ("", " k", " M", " G", " T", " P", " E", " Z")


@dataclass(frozen=True)
class TrainingLength:
    """Updates of trainings, and the seconds of audio in them without padding; NaN if they are unknown."""

    updates: float = 0
    audio_seconds: float = 0.0

    def __add__(self, other: "TrainingLength") -> "TrainingLength":
        return TrainingLength(self.updates + other.updates, self.audio_seconds + other.audio_seconds)

    def __truediv__(self, divisor: int) -> "TrainingLength":
        return TrainingLength(self.updates / divisor, self.audio_seconds / divisor)


@dataclass(frozen=True)
class Costs:
    """Costs of a system.

    Attributes:
      initial: Length of the training of the model that its training started from.
      search: Length of the search of its masks, for all languages.
      training: Length of its training.
      forward: Multiply-adds of the forward pass of training, per second of audio; all these trainings have one
        architecture.
      executed: Multiply-adds of decoding, per second of audio. A masked weight is multiplied like any other.
      active: The same without products with pruned weights, by language code.
    """

    initial: TrainingLength
    search: TrainingLength
    training: TrainingLength
    forward: float
    executed: float
    active: Mapping[str, float]

    def cells(self) -> list[str]:
        """Return the cells of a table with the columns `TITLES`."""
        lengths = (self.initial, self.search, self.training)
        low, high = (format_count(bound(self.active.values())) for bound in (min, max))
        return [
            " + ".join(_format(length.updates, "{:,.0f}") for length in lengths),
            format_count(self._multiply_adds(self.search)),
            format_count(self._multiply_adds(self.initial + self.training)),
            format_count(self.executed),
            low if low == high else f"{low} to {high}",
        ]

    def _multiply_adds(self, length: TrainingLength) -> float:
        return UPDATE_FACTOR * self.forward * length.audio_seconds


def read_costs(exp_dir: Path, summary: Path, languages: Iterable[str], masks: PathwayMasks | None) -> Costs:
    """Read the costs of a trained and decoded experiment.

    Args:
      exp_dir: The experiment.
      summary: The summary of its results: path and name state the search.
      languages: Codes of the decoded languages.
      masks: Its masks; None for a dense system.

    Raises:
      CheckpointError: The experiment has no checkpoint, or a damaged one.
    """
    checkpoint = checkpoints.read_description(exp_dir)
    config = from_dict(ModelConfig, checkpoint["config"]["model"])
    beam = re.search(r"beam-size-(\d+)", summary.name)
    streaming = summary.parent == layout.results_dir(exp_dir, summary.parent.name, streaming=True)
    forward, decoding = _count(config, checkpoint["vocab_size"], int(beam[1]) if beam else 1, streaming)
    initial, search = _read_earlier_lengths(exp_dir, checkpoint["config"]["training"])
    return Costs(
        initial=initial,
        search=search,
        training=_read_length(exp_dir),
        forward=forward,
        executed=decoding.total(),
        active={language: _active(decoding, masks, language) for language in languages},
    )


def join_languages(models: Sequence[Costs]) -> Costs:
    """Return the costs of a system with one model per language: they share the initial model and the search."""
    training = sum((model.training for model in models), TrainingLength())
    active = {language: count for model in models for language, count in model.active.items()}
    return replace(models[0], training=training, active=active)


def mean_costs(runs: Sequence[Costs]) -> Costs:
    """Return the mean costs of runs of one system with several seeds."""

    def mean(lengths: Iterable[TrainingLength]) -> TrainingLength:
        return sum(lengths, TrainingLength()) / len(runs)

    return replace(
        runs[0],
        initial=mean(run.initial for run in runs),
        search=mean(run.search for run in runs),
        training=mean(run.training for run in runs),
        active={language: sum(run.active[language] for run in runs) / len(runs) for language in runs[0].active},
    )


def format_count(count: float) -> str:
    """Format a count with three significant digits and an SI prefix, such as "12.3 M"; NaN is "unknown"."""
    index = 0
    while count >= 999.5 and index < len(_PREFIXES) - 1:
        count, index = count / 1000, index + 1
    decimals = sum(count < limit for limit in (99.95, 9.995)) if index else 0
    return _format(count, f"{{:.{decimals}f}}{_PREFIXES[index]}")


def _format(value: float, template: str) -> str:
    return "unknown" if math.isnan(value) else template.format(value)


@lru_cache
def _count(config: ModelConfig, vocab_size: int, num_hypotheses: int, streaming: bool) -> tuple[float, Counter[str]]:
    """Return the multiply-adds per second of a forward pass of training, and those of decoding by parameter."""
    model = model_to_count(config, vocab_size)
    return forward_per_second(model).total(), decoding_per_second(model, num_hypotheses, streaming)


def _active(counts: Counter[str], masks: PathwayMasks | None, language: str) -> float:
    if masks is None:
        return counts.total()
    pruned = (counts[name] * (1 - masks.mask(name, language).double().mean().item()) for name in masks.names)
    return counts.total() - sum(pruned)


def _read_length(folder: Path) -> TrainingLength:
    """Return the length of the training in a folder, or of the searches in its subfolders, one per language."""
    files = [folder / layout.METRICS_FILE, *folder.glob(f"*/{layout.METRICS_FILE}")]
    trainings = [read_metrics(file) for file in files if file.exists()]
    lengths = []
    for records in trainings:
        train = [record for record in records if record["kind"] == "train"]
        lengths.append(
            TrainingLength(max(record["update"] for record in train), sum(record["audio_seconds"] for record in train))
        )
    return sum(lengths, TrainingLength()) if lengths else TrainingLength(math.nan, math.nan)


def _read_earlier_lengths(exp_dir: Path, options: Mapping[str, Any]) -> tuple[TrainingLength, TrainingLength]:
    """Return the lengths of the initial model and of the search, given the options of a training."""
    initial, search = TrainingLength(), TrainingLength()
    if options["masks"]:
        search = _read_search_length(_current_path(exp_dir, options, options["masks"]))
    if options["init_from"]:
        folder = _current_path(exp_dir, options, options["init_from"])
        initial = _read_length(folder)
        if not math.isnan(initial.updates):
            earlier = _read_earlier_lengths(folder, read_json(folder / layout.CONFIG_FILE)["training"])
            initial = sum(earlier, initial)
    return initial, search


def _read_search_length(masks_file: Path) -> TrainingLength:
    """Return the length of the search that wrote a masks file."""
    length, header = _read_length(masks_file.parent), masks_file.with_suffix(".json")
    if math.isnan(length.updates) and header.exists() and read_header(header)[0].method == "random":
        return TrainingLength()  # drawn without training
    return length


def _current_path(exp_dir: Path, options: Mapping[str, Any], path: str) -> Path:
    """Return the current location of a path in the options, assuming that it was moved together with the experiment."""
    return exp_dir.absolute() / os.path.relpath(path, options["exp_dir"])
