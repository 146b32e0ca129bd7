"""The largest of many scores, in exact number and the same ones on every machine."""

from collections.abc import Sequence

import torch
from torch import Tensor

_DIGITS = 1 << 16  # values of half of a float's bits
_HALF = _DIGITS // 2


def top_k(scores: Tensor, candidates: Tensor, kept: int) -> Tensor:
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
    return top_k_joint([scores], [candidates], [1], kept)[0]


def top_k_joint(
    scores: Sequence[Tensor], candidates: Sequence[Tensor], sizes: Sequence[Tensor | int], budget: int
) -> list[Tensor]:
    """As `top_k`, out of several tensors together, of items that weigh differently.

    The items are taken from the largest score down (among equals in the order of the tensors, then of the indices) for
    as long as their sizes add up to `budget` at most. Nothing is sorted and nothing pooled: histograms of the upper and
    of the lower half of the scores' bits lead to the threshold.

    Args:
      scores: Floating point, of any shapes.
      candidates: Bool, of the same shapes.
      sizes: Integers of the same shapes, or one number where all items of a tensor weigh the same.
      budget: The largest sum of sizes.

    Returns:
      Bool tensors of the same shapes.
    """
    items = list(zip(map(_ordered, scores), candidates, sizes, strict=True))
    if sum(_total(alive, size) for _, alive, size in items) <= budget:
        return [alive.clone() for alive in candidates]
    upper, remaining = _threshold([_histogram(key >> 16, alive, size) for key, alive, size in items], budget)
    lower, remaining = _threshold(
        [_histogram((key & 0xFFFF) - _HALF, alive & (key >> 16 == upper), size) for key, alive, size in items],
        remaining,
    )
    threshold = (upper << 16) + lower + _HALF
    kept = []
    for key, alive, size in items:
        ties = alive & (key == threshold)
        kept.append((alive & (key > threshold)).logical_or_(_first(ties, size, remaining)))
        remaining = max(0, remaining - _total(ties, size))
    return kept


def _ordered(scores: Tensor) -> Tensor:
    """Integers (int32) in the order of the scores: the bits of a float, those below its sign flipped if negative."""
    finite = torch.nan_to_num(scores.detach().float(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    bits = finite.add(0.0).view(torch.int32)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _histogram(digits: Tensor, items: Tensor, size: Tensor | int) -> Tensor:
    """The sizes of `items` added up by their digit, which lies within 16 bits with a sign: (65536,), int64."""
    # What is no item is counted beyond the end: quicker than picking the items out.
    places = torch.where(items, digits + _HALF, _DIGITS).flatten()
    # Sums of whole numbers are exact in float64.
    weights = None if isinstance(size, int) else size.flatten().double()
    counts = torch.bincount(places, weights, minlength=_DIGITS + 1)[:_DIGITS].long()
    return counts * size if isinstance(size, int) else counts


def _threshold(histograms: Sequence[Tensor], budget: int) -> tuple[int, int]:
    """From the top, the digit that no longer fits into `budget` as a whole, and what is left of `budget` for it."""
    from_top = torch.stack(list(histograms)).sum(0).flip(0).cumsum(0)
    place = int((from_top <= budget).sum())
    used = int(from_top[place - 1]) if place else 0
    return _HALF - 1 - place, budget - used


def _first(items: Tensor, size: Tensor | int, budget: int) -> Tensor:
    """The first of the items, as long as their sizes add up to `budget` at most."""
    filled = (items * size).flatten().cumsum(0).view(items.shape)
    return items & (filled <= budget)


def _total(items: Tensor, size: Tensor | int) -> int:
    return int(torch.count_nonzero(items)) * size if isinstance(size, int) else int((items * size).sum())
