"""Gradual pruning: sparsity rises in small steps during training."""

from icefall_pathways.pathways.criteria import get_criterion
from icefall_pathways.pathways.schedules.base import PruningSchedule, check_target


def cubic_sparsity(initial: float, target: float, progress: float) -> float:
    """Return the sparsity at `progress` (0 to 1) of a cubic ramp, steep at its start and flat at its end.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1.
    """
    return target if progress >= 1 else target + (initial - target) * (1 - progress) ** 3


class GradualPruning(PruningSchedule):
    """Ramp up sparsity from `initial` to `target_sparsity` in small steps; pruned entries never return.

    Args:
      target_sparsity: Sparsity after the last step.
      every: Updates between two steps.
      end: Last update after which a step may follow.
      start: Number of updates before the ramp.
      initial: Sparsity of the masks at the start.
      prune_by: Criterion that ranks the entries to keep.

    Raises:
      ValueError: A value is out of range, or there is no step between `start` and `end`.
    """

    method = "gradual"

    def __init__(
        self,
        target_sparsity: float,
        every: int,
        end: int,
        start: int = 0,
        initial: float = 0.0,
        prune_by: str = "magnitude",
    ) -> None:
        if every < 1 or start < 0 or end < start + every:
            raise ValueError(
                f"pruning every {every} updates from {start} to {end}: expected at least one step, "
                "so an end at least that many updates after the start"
            )
        self.target_sparsity = check_target(target_sparsity)
        self.every = every
        self.start = start
        self.initial = initial
        self.steps = (end - start) // every
        self.prune_by = prune_by
        self.needs_gradients = get_criterion(prune_by).needs_gradients

    @property
    def num_updates(self) -> int:
        """The update of the last step."""
        return self.start + self.steps * self.every

    def step_after(self, update: int) -> int | None:
        """Return the index of the step that follows this update, from 1, or None if there is none."""
        step, remainder = divmod(update - self.start, self.every)
        return None if remainder or not 1 <= step <= self.steps else step

    def sparsity_after(self, update: int) -> float | None:
        """Return the sparsity of the ramp after an update with a step; None after others."""
        step = self.step_after(update)
        return None if step is None else cubic_sparsity(self.initial, self.target_sparsity, step / self.steps)
