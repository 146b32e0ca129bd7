"""Masks to measure with where it does not matter which entries they keep."""

from collections.abc import Sequence

import torch
from torch import nn

from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.runs import PRUNE_SCOPES


def random_masks(model: nn.Module, languages: Sequence[str], sparsity: float) -> PathwayMasks:
    """Masks of encoder and predictor of a transducer, drawn from torch's random state."""
    masks = PathwayMasks.dense(model, languages, PRUNE_SCOPES["encoder-predictor"])
    for name, code in masks.codes.items():
        for language in languages:
            masks.set_mask(name, language, torch.rand(code.shape) >= sparsity)
    return masks
