"""Random masks for benchmarks."""

from collections.abc import Sequence

import torch
from torch import nn

from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.runs import PRUNE_SCOPES

LANGUAGES = ("en", "fr", "it", "nl")
SPARSITY = 0.7


def random_masks(model: nn.Module, languages: Sequence[str], sparsity: float) -> PathwayMasks:
    """Return random masks for the encoder and the predictor of a transducer, from torch's random generator."""
    masks = PathwayMasks.dense(model, languages, PRUNE_SCOPES["encoder-predictor"])
    for name, code in masks.codes.items():
        for language in languages:
            masks.set_mask(name, language, torch.rand(code.shape) >= sparsity)
    return masks
