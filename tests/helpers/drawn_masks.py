"""Random masks for tests."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from icefall_pathways.pathways.masks import PathwayMasks


def random_masks(
    model: nn.Module,
    languages: Sequence[str],
    roots: Iterable[str] | None = None,
    density: float = 0.5,
    generator: torch.Generator | None = None,
) -> PathwayMasks:
    """Return masks in which every language uses each prunable entry with probability `density`.

    Args:
      model: The model.
      languages: Codes of the languages.
      roots: See `PathwayMasks.dense`.
      density: Probability of an entry.
      generator: None: the default one of torch.
    """
    masks = PathwayMasks.dense(model, languages, roots)
    for name in masks.names:
        for language in languages:
            masks.set_mask(name, language, torch.rand(masks.codes[name].shape, generator=generator) < density)
    return masks
