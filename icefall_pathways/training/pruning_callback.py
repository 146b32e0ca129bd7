"""Pruning during training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.pathways.analysis import mean_overlap
from icefall_pathways.pathways.schedules import PruningSchedule
from icefall_pathways.training.callbacks import Callback, UpdateResult
from icefall_pathways.training.train_state import TrainState

logger = logging.getLogger("icefall_pathways")


@dataclass(frozen=True)
class PruningPlan:
    """The mask changes of a training.

    Attributes:
      schedule: The updates after which masks change, and their sparsity.
      groups: Groups of languages; the languages of a group share a mask.
      rewind_to: Checkpoint to which a schedule with rewinding resets the weights; None: the initial weights.
    """

    schedule: PruningSchedule
    groups: Sequence[Sequence[str]]
    rewind_to: Path | None = None

    @property
    def needs_initial_checkpoint(self) -> bool:
        """True if the initial weights of the run must be saved."""
        return self.schedule.rewinds and self.rewind_to is None


class PruningCallback(Callback):
    """Prune, regrow and rewind after the updates given by a plan.

    Args:
      plan: The schedule, and the languages that share masks.
      exp_dir: The folder of checkpoint-0.pt, if the plan needs it.
    """

    def __init__(self, plan: PruningPlan, exp_dir: Path) -> None:
        self._plan = plan
        self._rewind_to = plan.rewind_to or layout.batch_checkpoint(exp_dir, 0)

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Change the masks if a change is due; the new masks are the same on all ranks."""
        schedule, masks, update = self._plan.schedule, state.masks, state.update
        if masks is None or schedule.sparsity_after(update) is None:
            return
        initial = checkpoints.read(self._rewind_to)["model"] if schedule.rewinds else None
        used = {name: code != 0 for name, code in masks.codes.items()}
        for languages in self._plan.groups:
            schedule.prune_after(update, state.model, masks, languages, initial, state.gradients)
        if schedule.rewinds:
            # The moments belong to the weights before rewinding.
            state.optimizer.reset()
        else:
            # The moments of regrown entries are stale: no language has used these entries since they were pruned.
            for name, code in masks.codes.items():
                state.optimizer.reset_entries(name, (code != 0) & ~used[name])
        state.mask_changes += 1
        sparsity = masks.sparsity(masks.languages[0])
        logger.info("masks after update %d: sparsity %.4f, overlap %.3f", update, sparsity, mean_overlap(masks))
