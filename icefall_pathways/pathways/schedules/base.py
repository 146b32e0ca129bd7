"""The interface of all pruning schedules."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.criteria import criterion_scores
from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_scores


class PruningSchedule(ABC):
    """Base class of schedules: when to prune, to which sparsity, and whether to rewind the weights.

    A trainer calls `prune_after(update, ...)` after every update; it changes the masks in place, and the weights too if
    the method rewinds. A schedule is stateless: it is a function of the update, the weights, the masks and the
    gradients that the trainer has accumulated, so a resumed run prunes exactly as an uninterrupted one.
    """

    #: The value of `MasksHeader.method` for the resulting masks.
    method: str

    #: Whether weights are rewound to their initial values after each pruning.
    rewinds: bool = False

    #: Criterion that ranks the entries to keep; see `pathways.criteria`.
    prune_by: str = "magnitude"

    #: Whether pruning uses the gradients of each language.
    needs_gradients: bool = False

    #: Whether masks depend on the trained weights. If not, a mask search calls `prune_after` without training.
    needs_training: bool = True

    #: Number of updates after which the learning rate schedule restarts; 0: never.
    restarts_every: int = 0

    @property
    @abstractmethod
    def num_updates(self) -> int:
        """Number of updates up to the last pruning."""

    @abstractmethod
    def sparsity_after(self, update: int) -> float | None:
        """Return the sparsity to prune to after this update (from 1); None: masks do not change."""

    def prune_after(
        self,
        update: int,
        model: nn.Module,
        masks: PathwayMasks,
        languages: Sequence[str],
        start: dict[str, Tensor] | None = None,
        gradients: LanguageGradients | None = None,
    ) -> bool:
        """Prune the mask that `languages` share if the schedule prunes after this update.

        Args:
          update: Number of finished updates, from 1.
          model: The model in training.
          masks: Changed in place.
          languages: The languages whose common mask is pruned.
          start: The weights to rewind to, by parameter name; required if the schedule rewinds.
          gradients: Each language's gradients; required if the schedule needs them.

        Returns:
          True if the mask was pruned.

        Raises:
          ValueError: `start` or `gradients` are required and missing.
        """
        sparsity = self.sparsity_after(update)
        if sparsity is None:
            return False
        if self.needs_gradients and gradients is None:
            raise ValueError(f"{type(self).__name__} ranks entries by gradients: pass `gradients`")
        self._prune(update, model, masks, languages, sparsity, gradients)
        if self.rewinds:
            if start is None:
                raise ValueError(f"{type(self).__name__} rewinds: pass the weights of the start as `start`")
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
        """Change the mask of `languages`; by default, remove the entries with the lowest scores permanently."""
        prune_by_scores(self._scores(model, masks, languages, gradients), masks, languages, sparsity)

    def _scores(
        self, model: nn.Module, masks: PathwayMasks, languages: Sequence[str], gradients: LanguageGradients | None
    ) -> dict[str, Tensor]:
        """Return the scores of all entries, by parameter name."""
        return criterion_scores(self.prune_by, model, masks, languages, gradients)


@torch.no_grad()
def rewind(model: nn.Module, start: dict[str, Tensor]) -> None:
    """Reset every parameter of `model` to its value in `start`; the names must match."""
    model.load_state_dict(start)


def check_target(sparsity: float) -> float:
    """Return a target sparsity after checking its range.

    Raises:
      ValueError: It is not above 0 and below 1.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected above 0 and below 1 (0.7 removes 70 %)")
    return sparsity
