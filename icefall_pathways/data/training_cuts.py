"""Selection of the usable training cuts of a language from its index."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.usable_cuts import USED, rejections


@dataclass(frozen=True)
class CutLimits:
    """Options that decide which cuts of an index are usable.

    Attributes:
      min_duration: Seconds.
      max_duration: Seconds.
      on_the_fly: Whether features are computed from the audio, or stored.
    """

    min_duration: float
    max_duration: float
    on_the_fly: bool


@dataclass(frozen=True, eq=False)
class TrainingCuts:
    """The usable training cuts of one language.

    Attributes:
      index: All training cuts.
      numbers: Numbers of the usable ones by increasing duration, (n,), uint32.
      total_seconds: Their total duration.
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
        total_seconds = float(index.durations[numbers].sum())
        return cls(index, numbers[order].astype(np.uint32), total_seconds, +counts)


def _rejections(index: CutIndex, limits: CutLimits) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield each reason to drop cuts, with the cuts that it concerns; a cut is counted for the first one."""
    yield f"shorter than {limits.min_duration} s", np.asarray(index.durations < limits.min_duration)
    yield f"longer than {limits.max_duration} s", np.asarray(index.durations > limits.max_duration)
    for reason, flag in rejections(limits.on_the_fly, has_loss=True).items():
        yield reason, (index.flags & flag) != 0
