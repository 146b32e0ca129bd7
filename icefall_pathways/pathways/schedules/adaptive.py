"""Adaptive pruning: masks and weights learnt together (dynamic pathways)."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_scores
from icefall_pathways.pathways.schedules.criteria import Criterion, scores
from icefall_pathways.pathways.schedules.gradual import GradualPruning, cubic_sparsity


class AdaptivePruning(GradualPruning):
    """Every language's mask is taken anew every few updates of joint training (arXiv 2309.13018).

    At each step, of the entries that a language uses those that rank highest by `prune_by` stay, except for the share
    `exchange` of the mask; the rest of the mask is filled from all other entries by `regrow`. So entries that other
    languages have kept training can come back, and with a gradient even those that nobody uses. The number of entries
    is exactly what the sparsity says, after every step.

    What keeps languages apart: all of them see the same weights, so by magnitudes alone their masks turn into one and
    the same. The gradient of a language is its own. With `sensitivity`, a mask is what the language's own loss needs
    (the saliency of Optimal Brain Damage, w^2 E[g^2] / 2, with the empirical Fisher information for the curvature);
    with `gradient`, masks grow where the language's loss falls fastest (RigL, Evci et al. 2020). Magnitudes for both
    suit one language alone, or masks that begin different and exchange little.

    An entry keeps its stored value while a language does not use it, and comes back with it.

    Args:
      target_sparsity: Sparsity after the ramp.
      every: Updates between two steps.
      end: No step is after this update: from then on masks are fixed.
      start: Updates before the first step can be due.
      initial: Sparsity of the masks at the start; at or above the target there is no ramp.
      ramp: Updates over which sparsity rises to the target, along the cubic curve of gradual pruning.
      prune_by: What decides who stays.
      regrow: What decides who comes (back).
      exchange: Share of a mask that may be exchanged at the first step; it falls along a cosine to 0 at the end.

    Raises:
      ValueError: A value out of its range.
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
        prune_by: Criterion = "sensitivity",
        regrow: Criterion = "sensitivity",
        exchange: float = 1.0,
    ) -> None:
        super().__init__(target_sparsity, every, end, start, initial, prune_by)
        if not 0 <= ramp <= end - start:
            raise ValueError(f"a ramp of {ramp} updates from {start}: expected it to be over by {end}")
        if not 0 <= exchange <= 1:
            raise ValueError(f"a share of {exchange} to exchange: expected 0 to 1")
        for criterion in (prune_by, regrow):
            if criterion not in get_args(Criterion):
                raise ValueError(f"unknown criterion {criterion!r}: expected one of {', '.join(get_args(Criterion))}")
        self.ramp_steps = max(1, ramp // every) if initial < target_sparsity else 1
        self.regrow: Criterion = regrow
        self.exchange = exchange
        self.needs_gradients = {prune_by, regrow} != {"magnitude"}

    def sparsity_after(self, update: int) -> float | None:
        """The sparsity that the ramp has reached, or the target, after updates with a step."""
        step = self.step_after(update)
        return None if step is None else cubic_sparsity(self.initial, self.target_sparsity, step / self.ramp_steps)

    def exchange_at(self, step: int) -> float:
        """The share of a mask that may be exchanged at a step (from 1)."""
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
        staying = 1 - (1 - self.exchange_at(step)) * (1 - sparsity)
        stay = scores(self.prune_by, model, masks, languages, gradients)
        come = stay if self.regrow == self.prune_by else scores(self.regrow, model, masks, languages, gradients)
        if staying < 1:
            prune_by_scores(stay, masks, languages, staying)
            for name in masks.names:
                come[name] = come[name].masked_fill(masks.mask(name, languages[0]), math.inf)
        prune_by_scores(come, masks, languages, sparsity, regrow=True)
