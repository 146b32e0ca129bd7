"""Gradual pruning: little by little while training goes on."""

from icefall_pathways.pathways.schedules.base import PruningSchedule, check_target
from icefall_pathways.pathways.schedules.criteria import Criterion


def cubic_sparsity(initial: float, target: float, progress: float) -> float:
    """Sparsity at `progress` (0 to 1) of a ramp that is steep first and flat at its end.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1.
    """
    return target if progress >= 1 else target + (initial - target) * (1 - progress) ** 3


class GradualPruning(PruningSchedule):
    """From `initial` to `target_sparsity` in small steps; what is pruned never comes back.

    Args:
      target_sparsity: Sparsity after the last step.
      every: Updates between two steps.
      end: No step is after this update.
      start: Updates before the ramp begins.
      initial: Sparsity of the masks at the start.
      prune_by: What decides which entries stay.

    Raises:
      ValueError: A value out of its range, or no step between `start` and `end`.
    """

    method = "gradual"

    def __init__(
        self,
        target_sparsity: float,
        every: int,
        end: int,
        start: int = 0,
        initial: float = 0.0,
        prune_by: Criterion = "magnitude",
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
        self.needs_gradients = prune_by != "magnitude"

    @property
    def num_updates(self) -> int:
        """The update of the last step."""
        return self.start + self.steps * self.every

    def step_after(self, update: int) -> int | None:
        """The number of the step, from 1, that follows this update; None if none does."""
        step, between = divmod(update - self.start, self.every)
        return None if between or not 1 <= step <= self.steps else step

    def sparsity_after(self, update: int) -> float | None:
        """The sparsity that the ramp has reached, after updates with a step."""
        step = self.step_after(update)
        return None if step is None else cubic_sparsity(self.initial, self.target_sparsity, step / self.steps)
