"""From magnitudes to masks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import MasksError, PathwayMasks


def num_kept(num_entries: int, sparsity: float) -> int:
    """How many of `num_entries` stay at `sparsity`: the nearest whole number.

    Raises:
      ValueError: `sparsity` is not within 0 (nothing pruned) and below 1.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected at least 0 and below 1 (0.7 removes 70 %)")
    return round((1 - sparsity) * num_entries)


def keep_largest(scores: Tensor, candidates: Tensor, kept: int) -> Tensor:
    """The mask of the `kept` candidates with the largest scores.

    The count is exact whatever the scores: among equal scores those with the lowest index stay, on every machine.
    Entries that are no candidates are never chosen. NaN counts as the smallest score.

    Args:
      scores: Any shape, floating point.
      candidates: Bool, same shape.
      kept: How many to keep; more than there are candidates keeps them all.

    Returns:
      Bool, same shape.
    """
    flat = torch.nan_to_num(scores.detach().flatten().float(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    alive = candidates.flatten()
    num_alive = int(alive.sum())
    if kept >= num_alive:
        return candidates.clone()
    if kept <= 0:
        return torch.zeros_like(candidates)
    threshold = torch.kthvalue(flat[alive], num_alive - kept + 1).values
    above = alive & (flat > threshold)
    ties = alive & (flat == threshold)
    first_ties = ties & (ties.cumsum(0) <= kept - above.sum())
    return (above | first_ties).view(candidates.shape)


@torch.no_grad()
def prune_by_magnitude(model: nn.Module, masks: PathwayMasks, languages: Sequence[str], sparsity: float) -> None:
    """Prune the sub-network that `languages` share, in place, layer by layer to the same sparsity.

    Of every tensor the entries of largest magnitude stay; what is pruned already never comes back (paper 2.1: "IMP").
    With several languages that is language-agnostic pruning.

    Args:
      model: Where the magnitudes come from.
      masks: Changed in place.
      languages: Whose mask to prune.
      sparsity: Share of entries of every tensor that are pruned afterwards.

    Raises:
      ValueError: The sparsity is out of range, or the languages have masks that differ.
    """
    parameters = dict(model.named_parameters())
    keep_by_scores({name: parameters[name].abs() for name in masks.names}, masks, languages, sparsity)


@torch.no_grad()
def keep_by_scores(
    scores: Mapping[str, Tensor], masks: PathwayMasks, languages: Sequence[str], sparsity: float, regrow: bool = False
) -> None:
    """Let `languages` use the entries of largest score, in place, layer by layer to the same sparsity.

    Args:
      scores: By parameter name, of the parameter's shape.
      masks: Changed in place.
      languages: Whose (common) mask to change.
      sparsity: Share of entries of every tensor that are outside the mask afterwards.
      regrow: Choose from all entries; else from those in the mask.

    Raises:
      ValueError: The sparsity is out of range, or the languages have masks that differ.
    """
    if not masks.tied(languages):
        raise MasksError(f"{', '.join(languages)} have masks that differ: prune one language at a time")
    for name in masks.names:
        current = masks.mask(name, languages[0])
        candidates = torch.ones_like(current) if regrow else current
        kept = num_kept(current.numel(), sparsity)
        masks.set_mask(name, languages, keep_largest(scores[name], candidates, kept))
