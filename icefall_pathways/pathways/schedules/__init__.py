"""Pruning schedules: when to prune, to which sparsity, and how masks and weights change."""

from icefall_pathways.pathways.schedules.adaptive import AdaptivePruning
from icefall_pathways.pathways.schedules.base import PruningSchedule, rewind
from icefall_pathways.pathways.schedules.gradual import GradualPruning, cubic_sparsity
from icefall_pathways.pathways.schedules.iterative import IterativeMagnitudePruning, OneShot
from icefall_pathways.pathways.schedules.random_pruning import RandomPruning
from icefall_pathways.pathways.schedules.registry import JOINT_METHODS, SEARCH_METHODS, JointSettings, SearchSettings

__all__ = [
    "JOINT_METHODS",
    "SEARCH_METHODS",
    "AdaptivePruning",
    "GradualPruning",
    "IterativeMagnitudePruning",
    "JointSettings",
    "OneShot",
    "PruningSchedule",
    "RandomPruning",
    "SearchSettings",
    "cubic_sparsity",
    "rewind",
]
