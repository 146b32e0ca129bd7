"""Selection of the usable training cuts of a language from its index, and the weights of its corpora.

A pass over a language visits the cuts of its corpora in the ratio of their weights: with 1 and 0.5, those of the first
corpus twice and those of the second once. The duration of a language, which decides how often the language is drawn and
how long an epoch is, counts each corpus with its weight.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.usable_cuts import USED, rejections

_MAX_VISITS = 20  # of a cut in a pass
_TOLERANCE = 1e-3  # of ratios of weights


@dataclass(frozen=True)
class CutLimits:
    """Options that decide which cuts of an index are usable.

    Attributes:
      min_duration: Seconds.
      max_duration: Seconds.
      on_the_fly: Features are computed from the audio, not stored.
    """

    min_duration: float
    max_duration: float
    on_the_fly: bool


@dataclass(frozen=True, eq=False)
class TrainingCuts:
    """The usable training cuts of one language.

    Attributes:
      index: All training cuts.
      numbers: Numbers of the usable ones by increasing duration, (n,), uint32; each once per visit in a pass.
      total_seconds: Their total duration; each corpus counts with its weight.
      counts: Number of used and of dropped cuts, by reason.
    """

    index: CutIndex
    numbers: npt.NDArray[np.uint32]
    total_seconds: float
    counts: Counter[str]

    @property
    def durations(self) -> npt.NDArray[np.float64]:
        """Durations of the usable cuts in seconds, increasing, (n,)."""
        return self.index.durations[self.numbers]

    @property
    def longest(self) -> float:
        """Duration of the longest usable cut in seconds."""
        return float(self.index.durations[self.numbers[-1]])

    @classmethod
    def select(cls, index: CutIndex, limits: CutLimits) -> "TrainingCuts":
        """Select the usable cuts of an index."""
        usable, counts = np.ones(len(index), bool), Counter[str]()
        for reason, rejected in _rejections(index, limits):
            rejected &= usable
            counts[reason] = int(rejected.sum())
            usable &= ~rejected
        numbers = np.flatnonzero(usable)
        order = np.argsort(index.durations[numbers], kind="stable")
        counts[USED] = len(numbers)
        weights = index.weights[numbers]
        total_seconds = float((index.durations[numbers] * weights).sum())
        numbers = np.repeat(numbers[order], visits_per_pass(weights)[order])
        return cls(index, numbers.astype(np.uint32), total_seconds, +counts)


def visits_per_pass(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return how often a pass visits each cut, (n,): the smallest numbers in the ratios of the weights, (n,).

    The largest is at most `_MAX_VISITS`; ratios that this does not allow are rounded.
    """
    values, inverse = np.unique(weights, return_inverse=True)
    if len(values) <= 1:
        return np.ones(len(weights), np.int64)
    ratios = values[:, None] / values[-1]  # (corpora, 1)
    largest = np.arange(1, _MAX_VISITS + 1)
    visits = np.maximum(1, np.rint(ratios * largest)).astype(np.int64)  # (corpora, _MAX_VISITS)
    errors = np.abs(visits / largest / ratios - 1).max(axis=0)
    best = int(np.argmax(errors <= errors.min() + _TOLERANCE))
    return visits[:, best][inverse]


def _rejections(index: CutIndex, limits: CutLimits) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield each reason to drop cuts, with the cuts that it concerns; a cut is counted for the first one."""
    yield f"shorter than {limits.min_duration} s", np.asarray(index.durations < limits.min_duration)
    yield f"longer than {limits.max_duration} s", np.asarray(index.durations > limits.max_duration)
    for reason, flag in rejections(limits.on_the_fly, has_loss=True).items():
        yield reason, (index.flags & flag) != 0
