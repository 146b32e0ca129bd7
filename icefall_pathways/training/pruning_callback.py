"""Pruning while a training goes on: what a schedule needs from the trainer, and what follows for the optimizer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.optim.masked_optimizer import MaskedOptimizer
from icefall_pathways.pathways.analysis import mean_overlap
from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import PruningSchedule
from icefall_pathways.training.launch.ranks import Rank

logger = logging.getLogger("icefall_pathways")


@dataclass(frozen=True)
class PruningPlan:
    """How a training changes its masks.

    Attributes:
      schedule: When, and how far.
      groups: The languages that share a mask, group by group.
      rewind_to: Checkpoint that a schedule which rewinds goes back to; None: the weights that the run starts with.
    """

    schedule: PruningSchedule
    groups: Sequence[Sequence[str]]
    rewind_to: Path | None = None

    @property
    def needs_start(self) -> bool:
        """Whether the run's own first weights have to be kept."""
        return self.schedule.rewinds and self.rewind_to is None


class Pruner:
    """Carries out a plan.

    Args:
      plan: What to do.
      model: The model that is being trained.
      masks: Changed in place.
      optimizer: Forgets the moments of entries that begin anew.
      rank: Which process this is.
      exp_dir: Where checkpoint-0.pt is, if the plan needs it.

    Attributes:
      changes: How often the masks have changed since this process began.
    """

    def __init__(
        self,
        plan: PruningPlan,
        model: nn.Module,
        masks: PathwayMasks,
        optimizer: MaskedOptimizer,
        rank: Rank,
        exp_dir: Path,
    ) -> None:
        self._plan = plan
        self._model = model
        self._masks = masks
        self._optimizer = optimizer
        self._rank = rank
        self._start = plan.rewind_to or layout.batch_checkpoint(exp_dir, 0)
        self.gradients = LanguageGradients(all_reduce_sum=rank.sum) if plan.schedule.needs_gradients else None
        self.changes = 0

    def after_update(self, update: int) -> None:
        """Prune, if the schedule says so. All ranks come to the same masks."""
        schedule, masks = self._plan.schedule, self._masks
        if schedule.sparsity_after(update) is None:
            return
        start = checkpoints.read(self._start)["model"] if schedule.rewinds else None
        used = {name: code != 0 for name, code in masks.codes.items()}
        for languages in self._plan.groups:
            schedule.prune_after(update, self._model, masks, languages, start, self.gradients)
        if schedule.rewinds:
            # Moments gathered on the weights before the rewinding say nothing about the weights after it.
            self._optimizer.reset()
        else:
            self._forget_returned(used)
        self.changes += 1
        sparsity = masks.sparsity(masks.languages[0])
        logger.info("masks after update %d: sparsity %.4f, overlap %.3f", update, sparsity, mean_overlap(masks))

    def _forget_returned(self, used: dict[str, torch.Tensor]) -> None:
        """Entries that no language used and one uses again must not go on with momentum from back then."""
        for name, code in self._masks.codes.items():
            self._optimizer.forget(name, (code != 0) & ~used[name])
