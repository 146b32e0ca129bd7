"""When a run prunes, and how far.

A trainer calls `schedule.prune_after(update, ...)` after every update; it changes the masks in place, and the weights
too if the method rewinds. A schedule holds no state: what it does is a function of the update number, so a resumed run
does what the uninterrupted one does. A new method is one more class here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_magnitude


class PruningSchedule(ABC):
    """When to prune, how far, and what becomes of the weights."""

    #: The value of `MasksHeader.method` for masks found so.
    method: str

    #: Whether the weights go back to those of the start after pruning.
    rewinds: bool = False

    @property
    @abstractmethod
    def num_updates(self) -> int:
        """How many updates the schedule needs until its last pruning."""

    @abstractmethod
    def sparsity_after(self, update: int) -> float | None:
        """The sparsity to prune to after this update (from 1); None leaves the masks alone."""

    def prune_after(
        self,
        update: int,
        model: nn.Module,
        masks: PathwayMasks,
        languages: Sequence[str],
        start: dict[str, Tensor] | None = None,
    ) -> bool:
        """Prune the mask that `languages` share, if it is time to.

        Args:
          update: Updates done, from 1.
          model: The model that is being trained.
          masks: Changed in place.
          languages: Whose (common) mask to prune.
          start: The weights to rewind to, by parameter name; needed if the schedule rewinds.

        Returns:
          Whether it pruned.

        Raises:
          ValueError: The schedule rewinds and there is no `start`.
        """
        sparsity = self.sparsity_after(update)
        if sparsity is None:
            return False
        prune_by_magnitude(model, masks, languages, sparsity)
        if self.rewinds:
            if start is None:
                raise ValueError(f"{type(self).__name__} rewinds: it needs the weights of the start")
            rewind(model, start)
        return True


class IterativeMagnitudePruning(PruningSchedule):
    """Rounds of {train `updates_per_round` updates; prune}: IMP, or LTH with `rewinds`.

    Every round removes the same share of the entries that remain, and the last one meets the target exactly.

    Args:
      target_sparsity: Sparsity after the last round.
      updates_per_round: Updates of training before each pruning.
      rounds: Number of rounds; 0 takes as many as removing `drop` a round needs.
      drop: Share of the remaining entries to remove in a round (the paper's 20 %), used if `rounds` is 0.
      rewinds: Go back to the weights of the start after every round (lottery-ticket style).

    Raises:
      ValueError: A value out of its range.
    """

    def __init__(
        self, target_sparsity: float, updates_per_round: int, rounds: int = 0, drop: float = 0.2, rewinds: bool = False
    ) -> None:
        if not 0 < target_sparsity < 1:
            raise ValueError(f"sparsity {target_sparsity}: expected above 0 and below 1 (0.7 removes 70 %)")
        if updates_per_round < 1 or rounds < 0:
            raise ValueError(f"{updates_per_round} updates per round, {rounds} rounds: expected at least 1 and 0")
        if rounds == 0 and not 0 < drop < 1:
            raise ValueError(f"drop {drop}: expected above 0 and below 1 (0.2 removes 20 % of what remains)")
        self.target_sparsity = target_sparsity
        self.updates_per_round = updates_per_round
        self.rounds = rounds or math.ceil(round(math.log(1 - target_sparsity) / math.log(1 - drop), 9))
        self.rewinds = rewinds
        self.method = "lth" if rewinds else "imp"
        # With a number of rounds, every round removes the same share; with a drop, the last round removes less.
        self._remaining_per_round = (1 - target_sparsity) ** (1 / self.rounds) if rounds else 1 - drop

    @property
    def num_updates(self) -> int:
        """All rounds together."""
        return self.rounds * self.updates_per_round

    def sparsity_after(self, update: int) -> float | None:
        """The sparsity of the round that ends with this update."""
        finished, within = divmod(update, self.updates_per_round)
        if within or not 1 <= finished <= self.rounds:
            return None
        if finished == self.rounds:
            return self.target_sparsity
        return min(self.target_sparsity, 1 - self._remaining_per_round**finished)


class OneShot(IterativeMagnitudePruning):
    """All at once after `updates` updates of training."""

    def __init__(self, target_sparsity: float, updates: int = 1) -> None:
        super().__init__(target_sparsity, updates, rounds=1)
        self.method = "one-shot"


@torch.no_grad()
def rewind(model: nn.Module, start: dict[str, Tensor]) -> None:
    """Give every parameter of `model` its value in `start`; names must agree."""
    model.load_state_dict(start)
