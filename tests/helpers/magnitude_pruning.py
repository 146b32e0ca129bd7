"""Magnitude pruning for tests."""

from collections.abc import Sequence

import torch
from torch import nn

from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.pruning import prune_by_scores


@torch.no_grad()
def prune_by_magnitude(model: nn.Module, masks: PathwayMasks, languages: Sequence[str], sparsity: float) -> None:
    """Prune the entries with the smallest magnitudes from the mask that `languages` share, in place."""
    parameters = dict(model.named_parameters())
    prune_by_scores({name: parameters[name].abs() for name in masks.names}, masks, languages, sparsity)
