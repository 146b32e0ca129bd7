"""Compute masks from scores."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from icefall_pathways.pathways.allocation import budget_groups
from icefall_pathways.pathways.granularity import parse_granularity
from icefall_pathways.pathways.masks import MasksError, PathwayMasks


@torch.no_grad()
def prune_by_scores(
    scores: Mapping[str, Tensor], masks: PathwayMasks, languages: Sequence[str], sparsity: float, regrow: bool = False
) -> None:
    """Set the mask of `languages` to the entries, or groups of entries, with the largest scores, in place.

    Args:
      scores: Scores by parameter name, of the parameter's shape.
      masks: Changed in place. Their header defines the groups (`granularity`) and the allocation of the sparsity over
        the parameters (`allocation`, `layer_sparsity`).
      languages: The languages whose common mask is set.
      sparsity: The overall sparsity of the new mask.
      regrow: Select from all entries; otherwise from those in the mask.

    Raises:
      MasksError: The masks of the languages differ.
      ValueError: The sparsity is out of range, or the masks split groups of the granularity.
    """
    if not masks.share_mask(languages):
        raise MasksError(f"{', '.join(languages)} have different masks: prune one language at a time")
    granularity = parse_granularity(masks.header.granularity)
    sizes = {name: code.numel() for name, code in masks.codes.items()}
    for names, group_sparsity in budget_groups(masks.header, sizes, sparsity):
        current = [masks.mask(name, languages[0]) for name in names]
        candidates = [torch.ones_like(mask) for mask in current] if regrow else current
        selected = granularity.select([scores[name] for name in names], candidates, group_sparsity)
        for name, kept in zip(names, selected, strict=True):
            masks.set_mask(name, languages, kept)
