"""When a run prunes, how far, and what becomes of masks and weights. A new method is one class in a file here."""

from icefall_pathways.pathways.schedules.adaptive import AdaptivePruning
from icefall_pathways.pathways.schedules.base import PruningSchedule, rewind
from icefall_pathways.pathways.schedules.gradual import GradualPruning, cubic_sparsity
from icefall_pathways.pathways.schedules.iterative import IterativeMagnitudePruning, OneShot

__all__ = [
    "AdaptivePruning",
    "GradualPruning",
    "IterativeMagnitudePruning",
    "OneShot",
    "PruningSchedule",
    "cubic_sparsity",
    "rewind",
]
