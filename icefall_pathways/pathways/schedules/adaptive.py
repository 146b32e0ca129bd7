"""Adaptive pruning: masks and weights are learned jointly (dynamic pathways)."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from icefall_pathways.pathways.criteria import criterion_scores, get_criterion
from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_scores
from icefall_pathways.pathways.schedules.gradual import GradualPruning, cubic_sparsity


class AdaptivePruning(GradualPruning):
    """Recompute every language's mask every few updates of joint training (arXiv 2309.13018).

    Each step keeps the entries of the mask that score highest by `prune_by`, except for a share `exchange`, and fills
    the mask up to its size with the other entries that score highest by `regrow`. Entries that other languages have
    trained in the meantime can return, and so can entries that no language uses, if the criterion uses gradients. After
    every step, the number of entries matches the sparsity exactly.

    All languages share the weights, so masks by magnitude alone converge to the same mask. Gradients differ between
    languages and keep the masks different: `sensitivity` approximates the increase of the language's loss when an entry
    is removed, `gradient` the decrease of that loss when an entry is added. Use magnitude for both criteria only for a
    single language, or for masks that differ at the start and exchange little.

    An entry keeps its stored value while a language does not use it, and returns with that value.

    Args:
      target_sparsity: Sparsity after the ramp.
      every: Updates between two steps.
      end: Last update after which masks may change.
      start: Number of updates before the ramp.
      initial: Sparsity of the masks at the start; at or above the target there is no ramp.
      ramp: Updates over which sparsity rises to the target, along the cubic curve of gradual pruning.
      prune_by: Criterion that ranks the entries to keep.
      regrow: Criterion that ranks the entries to regrow.
      exchange: Share of a mask that the first step may exchange; it decays along a cosine to 0 at the end.

    Raises:
      ValueError: A value is out of range.
    """

    method = "adaptive"

    def __init__(
        self,
        target_sparsity: float,
        every: int,
        end: int,
        start: int = 0,
        initial: float = 0.0,
        ramp: int = 0,
        prune_by: str = "sensitivity",
        regrow: str = "sensitivity",
        exchange: float = 1.0,
    ) -> None:
        super().__init__(target_sparsity, every, end, start, initial, prune_by)
        if not 0 <= ramp <= end - start:
            raise ValueError(f"a ramp of {ramp} updates from {start}: expected it to end by {end}")
        if not 0 <= exchange <= 1:
            raise ValueError(f"exchange {exchange}: expected a share from 0 to 1")
        self.ramp_steps = max(1, ramp // every) if initial < target_sparsity else 1
        self.regrow = regrow
        self.exchange = exchange
        criteria = [get_criterion(name) for name in (prune_by, regrow)]
        self.needs_gradients = any(criterion.needs_gradients for criterion in criteria)

    def sparsity_after(self, update: int) -> float | None:
        """Return the sparsity of the ramp, or the target, after an update with a step; None after others."""
        step = self.step_after(update)
        return None if step is None else cubic_sparsity(self.initial, self.target_sparsity, step / self.ramp_steps)

    def exchange_at(self, step: int) -> float:
        """Return the share of a mask that a step (from 1) may exchange."""
        return 0.5 * self.exchange * (1 + math.cos(math.pi * (step - 1) / self.steps))

    @torch.no_grad()
    def _prune(
        self,
        update: int,
        model: nn.Module,
        masks: PathwayMasks,
        languages: Sequence[str],
        sparsity: float,
        gradients: LanguageGradients | None,
    ) -> None:
        step = self.step_after(update)
        assert step is not None
        kept_sparsity = 1 - (1 - self.exchange_at(step)) * (1 - sparsity)
        keep_scores = criterion_scores(self.prune_by, model, masks, languages, gradients)
        regrow_scores = (
            keep_scores
            if self.regrow == self.prune_by
            else criterion_scores(self.regrow, model, masks, languages, gradients)
        )
        if kept_sparsity < 1:
            prune_by_scores(keep_scores, masks, languages, kept_sparsity)
            for name in masks.names:
                mask = masks.mask(name, languages[0])
                regrow_scores[name] = regrow_scores[name].masked_fill(mask, math.inf)
        prune_by_scores(regrow_scores, masks, languages, sparsity, regrow=True)
