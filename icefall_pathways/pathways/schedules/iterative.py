"""Rounds of training and pruning: IMP, LTH, one-shot."""

import math

from icefall_pathways.pathways.criteria import get_criterion
from icefall_pathways.pathways.schedules.base import PruningSchedule, check_target


class IterativeMagnitudePruning(PruningSchedule):
    """Rounds of {train `updates_per_round` updates; prune}: IMP, or LTH with `rewinds`.

    Every round removes the same share of the remaining entries, and the last one meets the target exactly.

    Args:
      target_sparsity: Sparsity after the last round.
      updates_per_round: Updates of training before each pruning.
      rounds: Number of rounds; None: as many as `drop` needs to reach the target.
      drop: Share of the remaining entries that a round removes (the paper's 20 %), used if `rounds` is None.
      rewinds: Reset the weights to their initial values after every round (lottery ticket hypothesis).
      prune_by: Criterion that ranks the entries to keep; IMP and LTH use magnitudes in the literature.

    Raises:
      ValueError: A value is out of range.
    """

    def __init__(
        self,
        target_sparsity: float,
        updates_per_round: int,
        rounds: int | None = None,
        drop: float = 0.2,
        rewinds: bool = False,
        prune_by: str = "magnitude",
    ) -> None:
        if updates_per_round < 1 or (rounds is not None and rounds < 1):
            raise ValueError(f"{updates_per_round} updates per round, {rounds} rounds: expected at least 1 of each")
        if rounds is None and not 0 < drop < 1:
            raise ValueError(f"drop {drop}: expected above 0 and below 1 (0.2 removes 20 % of what remains)")
        self.target_sparsity = check_target(target_sparsity)
        self.updates_per_round = updates_per_round
        self.rounds = rounds or math.ceil(round(math.log(1 - target_sparsity) / math.log(1 - drop), 9))
        self.rewinds = rewinds
        self.prune_by = prune_by
        self.needs_gradients = get_criterion(prune_by).needs_gradients
        self.restarts_every = updates_per_round if rewinds else 0
        self.method = "lth" if rewinds else "imp"
        # If `rounds` is given, every round removes the same share; with `drop`, the last round removes less.
        self._remaining_per_round = (1 - target_sparsity) ** (1 / self.rounds) if rounds else 1 - drop

    @property
    def num_updates(self) -> int:
        """Number of updates of all rounds."""
        return self.rounds * self.updates_per_round

    def sparsity_after(self, update: int) -> float | None:
        """Return the sparsity of the round that ends with this update; None after other updates."""
        finished, within = divmod(update, self.updates_per_round)
        if within or not 1 <= finished <= self.rounds:
            return None
        if finished == self.rounds:
            return self.target_sparsity
        return min(self.target_sparsity, 1 - self._remaining_per_round**finished)


class OneShot(IterativeMagnitudePruning):
    """Prune once, to the target sparsity, after `updates` updates of training."""

    def __init__(self, target_sparsity: float, updates: int = 1, prune_by: str = "magnitude") -> None:
        super().__init__(target_sparsity, updates, rounds=1, prune_by=prune_by)
        self.method = "one-shot"
