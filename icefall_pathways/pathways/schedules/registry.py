"""Pruning methods by name. A new method is one class in this folder and one line in a table here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from icefall_pathways.pathways.schedules.adaptive import AdaptivePruning
from icefall_pathways.pathways.schedules.base import PruningSchedule
from icefall_pathways.pathways.schedules.gradual import GradualPruning
from icefall_pathways.pathways.schedules.iterative import IterativeMagnitudePruning, OneShot
from icefall_pathways.pathways.schedules.random_pruning import RandomPruning


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a mask search. See the schedules for their meaning.

    Attributes:
      target_sparsity: Sparsity after the last round.
      updates_per_round: Updates of training before each pruning.
      rounds: Number of rounds; None: as many as `drop` needs to reach the target.
      drop: Share of the remaining entries that a round removes.
      prune_by: A criterion of `pathways.criteria`.
      seed: Seed of random masks.
    """

    target_sparsity: float
    updates_per_round: int
    rounds: int | None
    drop: float
    prune_by: str
    seed: int


@dataclass(frozen=True)
class JointSettings:
    """Settings of pruning during joint training. See the schedules for their meaning.

    Attributes:
      target_sparsity: Sparsity after the ramp.
      every: Updates between two steps, which change the masks.
      end: Last update after which masks may change.
      start: Number of updates before the ramp.
      initial: Sparsity of the masks at the start.
      ramp: Updates over which sparsity rises; None: two thirds of the updates from `start` to `end`.
      prune_by: Criterion that ranks the entries to keep.
      regrow: Criterion that ranks the entries to regrow.
      exchange: Share of a mask that the first step may exchange.
    """

    target_sparsity: float
    every: int
    end: int
    start: int
    initial: float
    ramp: int | None
    prune_by: str
    regrow: str
    exchange: float


# Default share of the updates over which sparsity rises; for the rest, it stays at the target.
_RAMP = 2 / 3


def _iterative(settings: SearchSettings, rewinds: bool = False) -> IterativeMagnitudePruning:
    return IterativeMagnitudePruning(
        settings.target_sparsity,
        settings.updates_per_round,
        settings.rounds,
        settings.drop,
        rewinds=rewinds,
        prune_by=settings.prune_by,
    )


def _lottery_ticket(settings: SearchSettings) -> IterativeMagnitudePruning:
    return _iterative(settings, rewinds=True)


def _gradual_search(settings: SearchSettings) -> GradualPruning:
    num_updates = _iterative(settings).num_updates
    return GradualPruning(settings.target_sparsity, settings.updates_per_round, num_updates, prune_by=settings.prune_by)


def _one_shot(settings: SearchSettings) -> OneShot:
    return OneShot(settings.target_sparsity, settings.updates_per_round, settings.prune_by)


def _random(settings: SearchSettings) -> RandomPruning:
    return RandomPruning(settings.target_sparsity, settings.seed)


def _gradual(settings: JointSettings) -> GradualPruning:
    return GradualPruning(
        settings.target_sparsity, settings.every, settings.end, settings.start, settings.initial, settings.prune_by
    )


def _adaptive(settings: JointSettings) -> AdaptivePruning:
    return AdaptivePruning(
        settings.target_sparsity,
        settings.every,
        settings.end,
        settings.start,
        settings.initial,
        int(_RAMP * (settings.end - settings.start)) if settings.ramp is None else settings.ramp,
        settings.prune_by,
        settings.regrow,
        settings.exchange,
    )


#: Methods of a mask search (prune.py --prune-method).
SEARCH_METHODS: dict[str, Callable[[SearchSettings], PruningSchedule]] = {
    "imp": _iterative,
    "lth": _lottery_ticket,
    "gradual": _gradual_search,
    "one-shot": _one_shot,
    "random": _random,
}

#: Methods of pruning during joint training (train.py --prune-method), which also accepts "none".
JOINT_METHODS: dict[str, Callable[[JointSettings], PruningSchedule]] = {
    "gradual": _gradual,
    "adaptive": _adaptive,
}

_JOINT_CHOICES = ("none", *JOINT_METHODS)
# Choices of the options. Type checkers cannot evaluate a table, so for them the choices are any string.
if TYPE_CHECKING:
    SearchMethod = str
    JointMethod = str
else:
    SearchMethod = Literal[tuple(SEARCH_METHODS)]
    JointMethod = Literal[_JOINT_CHOICES]
