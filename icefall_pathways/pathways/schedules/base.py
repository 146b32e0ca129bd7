"""What all pruning schedules have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_scores
from icefall_pathways.pathways.schedules.criteria import Criterion, scores


class PruningSchedule(ABC):
    """When to prune, how far, and what becomes of the weights.

    A trainer calls `prune_after(update, ...)` after every update; it changes the masks in place, and the weights too if
    the method rewinds. A schedule holds no state: what it does is a function of the update number, the weights, the
    masks and the gradients that the trainer has gathered, so a resumed run does what the uninterrupted one does.
    """

    #: The value of `MasksHeader.method` for masks found so.
    method: str

    #: Whether the weights go back to those of the start after pruning.
    rewinds: bool = False

    #: What decides which entries stay.
    prune_by: Criterion = "magnitude"

    #: Whether pruning needs to know each language's gradients.
    needs_gradients: bool = False

    #: Updates after which the learning rate starts anew; 0: it does not.
    restarts_every: int = 0

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
        gradients: LanguageGradients | None = None,
    ) -> bool:
        """Prune the mask that `languages` share, if it is time to.

        Args:
          update: Updates done, from 1.
          model: The model that is being trained.
          masks: Changed in place.
          languages: Whose (common) mask to prune.
          start: The weights to rewind to, by parameter name; needed if the schedule rewinds.
          gradients: Each language's gradients; needed if the schedule watches them.

        Returns:
          Whether it pruned.

        Raises:
          ValueError: The schedule needs `start` or `gradients`, and they are not given.
        """
        sparsity = self.sparsity_after(update)
        if sparsity is None:
            return False
        if self.needs_gradients and gradients is None:
            raise ValueError(f"{type(self).__name__} chooses by gradients: it needs those of each language")
        self._prune(update, model, masks, languages, sparsity, gradients)
        if self.rewinds:
            if start is None:
                raise ValueError(f"{type(self).__name__} rewinds: it needs the weights of the start")
            rewind(model, start)
        return True

    def _prune(
        self,
        update: int,
        model: nn.Module,
        masks: PathwayMasks,
        languages: Sequence[str],
        sparsity: float,
        gradients: LanguageGradients | None,
    ) -> None:
        """Change the mask of `languages`; by default what ranks lowest goes, for good."""
        prune_by_scores(scores(self.prune_by, model, masks, languages, gradients), masks, languages, sparsity)


@torch.no_grad()
def rewind(model: nn.Module, start: dict[str, Tensor]) -> None:
    """Give every parameter of `model` its value in `start`; names must agree."""
    model.load_state_dict(start)


def check_target(sparsity: float) -> float:
    """The target sparsity, once it is known to be one.

    Raises:
      ValueError: It is not above 0 and below 1.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected above 0 and below 1 (0.7 removes 70 %)")
    return sparsity
