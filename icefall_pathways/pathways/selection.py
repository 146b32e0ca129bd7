"""Deterministic top-k selection over one or several tensors, with an exact count."""

from collections.abc import Sequence

import torch
from torch import Tensor

_DIGITS = 1 << 16  # values of a digit: one half of the 32 bits of a score
_HALF = _DIGITS // 2


def top_k(scores: Tensor, candidates: Tensor, k: int) -> Tensor:
    """Return the mask of the `k` candidates with the largest scores.

    The count is exact for any scores, and ties are broken by index, on every machine. NaN counts as the smallest score.

    Args:
      scores: Floating point, any shape.
      candidates: Bool, same shape; other entries are never selected.
      k: The number to select; if there are fewer candidates, all are selected.

    Returns:
      Bool, same shape.
    """
    return top_k_joint([scores], [candidates], [1], k)[0]


def top_k_joint(
    scores: Sequence[Tensor], candidates: Sequence[Tensor], sizes: Sequence[Tensor | int], budget: int
) -> list[Tensor]:
    """Select the candidates with the largest scores jointly from several tensors, within a budget of sizes.

    Items are selected in descending order of their scores (ties in the order of the tensors, then of the indices) while
    the sum of their sizes stays within `budget`. No tensor is sorted or concatenated: histograms of the upper and
    of the lower half of the scores' bits determine the threshold.

    Args:
      scores: Floating point, any shapes.
      candidates: Bool, same shapes; other items are never selected.
      sizes: Integers of the same shapes, or one integer if all items of a tensor have the same size.
      budget: The largest sum of sizes.

    Returns:
      Bool tensors of the same shapes.
    """
    items = list(zip(map(_sort_keys, scores), candidates, sizes, strict=True))
    if sum(_total_size(candidate, size) for _, candidate, size in items) <= budget:
        return [candidate.clone() for candidate in candidates]
    upper, remaining = _threshold([_histogram(key >> 16, candidate, size) for key, candidate, size in items], budget)
    lower, remaining = _threshold(
        [_histogram((key & 0xFFFF) - _HALF, candidate & (key >> 16 == upper), size) for key, candidate, size in items],
        remaining,
    )
    threshold = (upper << 16) + lower + _HALF
    selected = []
    for key, candidate, size in items:
        ties = candidate & (key == threshold)
        selected.append((candidate & (key > threshold)).logical_or_(_first_within(ties, size, remaining)))
        remaining = max(0, remaining - _total_size(ties, size))
    return selected


def _sort_keys(scores: Tensor) -> Tensor:
    """Return int32 keys in the order of the scores: the bits of a float, with all but the sign flipped if negative."""
    finite = torch.nan_to_num(scores.detach().float(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    bits = finite.add(0.0).view(torch.int32)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _histogram(digits: Tensor, items: Tensor, size: Tensor | int) -> Tensor:
    """Return the sum of the sizes of `items` per digit (signed, 16 bits): (65536,), int64."""
    # Other entries are counted in an extra bin, which is faster than indexing the items.
    bins = torch.where(items, digits + _HALF, _DIGITS).flatten()
    # Sums of integers are exact in float64.
    weights = None if isinstance(size, int) else size.flatten().double()
    counts = torch.bincount(bins, weights, minlength=_DIGITS + 1)[:_DIGITS].long()
    return counts * size if isinstance(size, int) else counts


def _threshold(histograms: Sequence[Tensor], budget: int) -> tuple[int, int]:
    """Return the largest digit at which the total size exceeds `budget`, and the budget that remains for it."""
    from_top = torch.stack(list(histograms)).sum(0).flip(0).cumsum(0)
    index = int((from_top <= budget).sum())
    used = int(from_top[index - 1]) if index else 0
    return _HALF - 1 - index, budget - used


def _first_within(items: Tensor, size: Tensor | int, budget: int) -> Tensor:
    """Return the leading items while the sum of their sizes stays within `budget`."""
    filled = (items * size).flatten().cumsum(0).view(items.shape)
    return items & (filled <= budget)


def _total_size(items: Tensor, size: Tensor | int) -> int:
    return int(torch.count_nonzero(items)) * size if isinstance(size, int) else int((items * size).sum())
