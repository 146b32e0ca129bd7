"""From magnitudes to masks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.allocation import pools
from icefall_pathways.pathways.granularity import num_kept, parse_granularity
from icefall_pathways.pathways.masks import MasksError, PathwayMasks

__all__ = ["keep_by_scores", "num_kept", "prune_by_magnitude"]


@torch.no_grad()
def prune_by_magnitude(model: nn.Module, masks: PathwayMasks, languages: Sequence[str], sparsity: float) -> None:
    """Prune the sub-network that `languages` share, in place.

    The entries of largest magnitude stay; what is pruned already never comes back (paper 2.1: "IMP"). With several
    languages that is language-agnostic pruning.

    Args:
      model: Where the magnitudes come from.
      masks: Changed in place. Their header says what is pruned as one, and how much of each tensor.
      languages: Whose mask to prune.
      sparsity: Share of all entries together that are pruned afterwards.

    Raises:
      ValueError: The sparsity is out of range, or the languages have masks that differ.
    """
    parameters = dict(model.named_parameters())
    keep_by_scores({name: parameters[name].abs() for name in masks.names}, masks, languages, sparsity)


@torch.no_grad()
def keep_by_scores(
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
    if not masks.tied(languages):
        raise MasksError(f"{', '.join(languages)} have masks that differ: prune one language at a time")
    granularity = parse_granularity(masks.header.granularity)
    for names, share in pools(masks.header, {name: code.numel() for name, code in masks.codes.items()}, sparsity):
        current = [masks.mask(name, languages[0]) for name in names]
        candidates = [torch.ones_like(mask) for mask in current] if regrow else current
        for name, kept in zip(names, granularity.keep([scores[n] for n in names], candidates, share), strict=True):
            masks.set_mask(name, languages, kept)
