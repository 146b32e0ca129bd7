"""Masks from scores."""

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
    """Let `languages` use the entries, or the groups of entries, of largest score, in place.

    Args:
      scores: By parameter name, of the parameter's shape.
      masks: Changed in place. Their header says what is chosen as one (`granularity`) and how the sparsity falls on the
        tensors (`allocation`, `layer_sparsity`).
      languages: Whose (common) mask to change.
      sparsity: Share of all entries together that are outside the mask afterwards.
      regrow: Choose from all entries; else from those in the mask.

    Raises:
      ValueError: The sparsity is out of range, the languages have masks that differ, or masks that cut through groups.
    """
    if not masks.share_mask(languages):
        raise MasksError(f"{', '.join(languages)} have masks that differ: prune one language at a time")
    granularity = parse_granularity(masks.header.granularity)
    for names, share in budget_groups(
        masks.header, {name: code.numel() for name, code in masks.codes.items()}, sparsity
    ):
        current = [masks.mask(name, languages[0]) for name in names]
        candidates = [torch.ones_like(mask) for mask in current] if regrow else current
        for name, kept in zip(names, granularity.select([scores[n] for n in names], candidates, share), strict=True):
            masks.set_mask(name, languages, kept)
