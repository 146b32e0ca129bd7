"""Pruning granularity: single entries, blocks, rows, columns, or N of every M entries.

A parameter is viewed as a matrix with one row per output unit: (out, in) for a linear layer, (out, in x kernel) for
a convolution, where the kernel positions of an input channel are adjacent. A recurrent layer's matrices have one row
per gate and unit: (4H, in) and (4H, H) for an LSTM.

  element     single entries
  block:RxC   R rows by C columns; `*` is all of them: `block:16x*` is a head of 16 outputs in a projection
  row         all inputs of one output unit: a neuron, an output channel
  column      all weights of one input: an input channel with its whole kernel (in a grouped convolution, the same
              channel of each group; a depthwise convolution is one single column)
  N:M         N of every M adjacent entries of a row are kept (sparse tensor cores support 2:4)

If R or C does not divide the matrix, the last groups are smaller. The score of a group is the mean score of its
entries, which makes groups of different sizes comparable.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.pathways.selection import top_k_joint

_LOWEST = torch.finfo(torch.float32).min


def num_kept(num_entries: int, sparsity: float) -> int:
    """Return the number of entries to keep at `sparsity`, rounded to the nearest integer.

    Raises:
      ValueError: `sparsity` is not at least 0 (dense) and below 1.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected at least 0 and below 1 (0.7 removes 70 %)")
    return round((1 - sparsity) * num_entries)


class Granularity(ABC):
    """Base class of granularities: groups of entries that are kept or pruned together."""

    #: Whether parameters may share a budget (global allocation) or differ in sparsity.
    shares_budget = True

    @abstractmethod
    def select(self, scores: Sequence[Tensor], candidates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Select the entries to keep from parameters that share a budget.

        Args:
          scores: A score per entry for each parameter; the largest are kept.
          candidates: Bool, the entries that may be selected.
          sparsity: Share of all entries, candidates or not, that is not selected.

        Returns:
          Bool tensors of the parameters' shapes.

        Raises:
          ValueError: A group is only partly a candidate.
        """

    @abstractmethod
    def matches(self, mask: Tensor) -> bool:
        """Return True if a mask, or codes, of a parameter's shape consist of whole groups of this granularity."""

    @abstractmethod
    def check_sparsity(self, sparsity: float) -> None:
        """Check that masks of this granularity can have this sparsity.

        Raises:
          ValueError: They cannot; the message names a possible one.
        """


@dataclass(frozen=True)
class Blocks(Granularity):
    """Rectangular groups, including single entries.

    The number of kept entries deviates from the target by at most half the largest group; it is exact for single
    entries. At least one group of every parameter is kept, because a layer without weights has no output.

    Attributes:
      rows: Rows of a group; 0 for all.
      inputs: Columns of a group; 0 for all.
      whole_kernels: `inputs` counts input channels, each with its kernel, instead of columns.
    """

    rows: int = 1
    inputs: int = 1
    whole_kernels: bool = False

    def select(self, scores: Sequence[Tensor], candidates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Select the groups with the largest mean scores; break ties by index.

        Raises:
          ValueError: A group is only partly a candidate.
        """
        for candidate in candidates:
            if not self.matches(candidate):
                raise ValueError(
                    f"the masks split groups of {self}: start from dense masks or masks of the same granularity"
                )
        means = [self.group_means(score) for score in scores]
        candidate_groups = [self._first_entries(candidate) for candidate in candidates]
        sizes = [self.group_sizes(candidate) for candidate in candidates]
        largest = max(_max_size(size) for size in sizes)
        budget = num_kept(sum(candidate.numel() for candidate in candidates), sparsity)
        if len(means) > 1:
            means = [_promote_best(mean, groups) for mean, groups in zip(means, candidate_groups, strict=True)]
        kept = top_k_joint(means, candidate_groups, sizes, max(budget + largest // 2, largest))
        return [self._expand(groups, candidate.shape) for groups, candidate in zip(kept, candidates, strict=True)]

    def matches(self, mask: Tensor) -> bool:
        """Return True if the entries of every group are equal."""
        if self._group_shape(mask.shape) == (1, 1):
            return True
        return torch.equal(self._expand(self._first_entries(mask), mask.shape), mask)

    def check_sparsity(self, sparsity: float) -> None:
        """Check the range of the sparsity."""
        num_kept(1, sparsity)

    def _group_shape(self, shape: torch.Size) -> tuple[int, int]:
        """Return the rows and columns of a group in the matrix of a parameter."""
        kernel = math.prod(shape[2:]) if self.whole_kernels else 1
        columns = math.prod(shape[1:])
        return min(self.rows or shape[0], shape[0]), min(self.inputs * kernel or columns, columns)

    def _first_entries(self, values: Tensor) -> Tensor:
        """Return the first entry of every group."""
        rows, columns = self._group_shape(values.shape)
        return values.flatten(1)[::rows, ::columns]

    def _expand(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return a tensor of a parameter's shape in which each entry has the value of its group."""
        rows, columns = self._group_shape(shape)
        height, width = shape[0], math.prod(shape[1:])
        if (rows, columns) == (1, 1):
            return groups.reshape(shape)
        tall = groups.repeat_interleave(rows, 0)[:height]
        return tall.repeat_interleave(columns, 1)[:, :width].reshape(shape)

    def group_means(self, scores: Tensor) -> Tensor:
        """Return the mean score of every group of a parameter."""
        rows, columns = self._group_shape(scores.shape)
        matrix = scores.detach().flatten(1)
        if (rows, columns) == (1, 1):
            return matrix
        height, width = matrix.shape
        padded = F.pad(matrix.float(), (0, -width % columns, 0, -height % rows))
        sums = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum((1, 3))
        return sums / self.group_sizes(scores)

    def group_sizes(self, like: Tensor) -> Tensor | int:
        """Return the number of entries of each group of a parameter, or one integer if all groups have one size."""
        rows, columns = self._group_shape(like.shape)
        height, width = like.size(0), math.prod(like.shape[1:])
        if height % rows == 0 and width % columns == 0:
            return rows * columns
        heights = torch.full((-(-height // rows),), rows, device=like.device)
        widths = torch.full((-(-width // columns),), columns, device=like.device)
        heights[-1] -= -height % rows
        widths[-1] -= -width % columns
        return torch.outer(heights, widths)

    def __str__(self) -> str:
        rows, inputs = self.rows or "*", self.inputs or "*"
        named = {(1, 1): "element", (1, "*"): "row", ("*", 1): "column" if self.whole_kernels else ""}
        return named.get((rows, inputs)) or f"block:{rows}x{inputs}"


@dataclass(frozen=True)
class NofM(Granularity):
    """Keep `n` of every `m` adjacent entries of a row.

    At a lower sparsity, as in the rounds of iterative pruning, the number of kept entries per `m` is rounded to the
    nearest integer, and so is the number in the last group of a row if that group is smaller than `m`.
    """

    n: int
    m: int

    shares_budget = False

    def select(self, scores: Sequence[Tensor], candidates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Select the entries with the largest scores; break ties by index."""
        return [self._select(score, candidate, sparsity) for score, candidate in zip(scores, candidates, strict=True)]

    def _select(self, scores: Tensor, candidates: Tensor, sparsity: float) -> Tensor:
        allowed = candidates.flatten(1)
        # Even the lowest candidates rank above entries that are not candidates.
        ranked = torch.nan_to_num(scores.detach().float(), nan=_LOWEST, posinf=torch.inf, neginf=_LOWEST).flatten(1)
        ranked = ranked.masked_fill(~allowed, -torch.inf)
        whole = ranked.size(1) // self.m * self.m
        kept = torch.zeros_like(allowed)
        for start, end, width in ((0, whole, self.m), (whole, ranked.size(1), ranked.size(1) - whole)):
            if width:
                groups = ranked[:, start:end].unflatten(1, (-1, width))
                order = groups.sort(dim=2, descending=True, stable=True).indices[..., : num_kept(width, sparsity)]
                kept[:, start:end] = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order, True).flatten(1)
        # If a group has fewer candidates than the count, other entries were selected too.
        return (kept & allowed).view(candidates.shape)

    def matches(self, mask: Tensor) -> bool:
        """Return True if every language keeps at most `n` of every `m` entries, or all entries (a dense mask)."""
        bits = 1 if mask.dtype == torch.bool else torch.iinfo(mask.dtype).bits
        matrix = mask.flatten(1).to(torch.int64) if mask.dtype == torch.bool else mask.flatten(1)
        whole = matrix.size(1) // self.m * self.m
        for bit in range(bits if whole else 0):
            counts = (matrix[:, :whole] >> bit & 1).unflatten(1, (-1, self.m)).sum(2)
            if not ((counts <= self.n).all() or (counts == self.m).all()):
                return False
        return True

    def check_sparsity(self, sparsity: float) -> None:
        """Check that the sparsity is 1 - n / m.

        Raises:
          ValueError: It is not; the message names the sparsity of this granularity.
        """
        implied = 1 - self.n / self.m
        if not math.isclose(sparsity, implied, abs_tol=1e-6):
            raise ValueError(
                f"{self} keeps {self.n} of every {self.m} entries, which is a sparsity of {implied:g}, not "
                f"{sparsity:g}: use --sparsity {implied:g}, or another --granularity"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def parse_granularity(text: str) -> Granularity:
    """Parse a granularity in the notation of options and masks headers.

    Raises:
      ValueError: The text is not a granularity.
    """
    named = {"element": Blocks(), "row": Blocks(1, 0), "column": Blocks(0, 1, whole_kernels=True)}
    if text in named:
        return named[text]
    if match := re.fullmatch(r"block:([1-9]\d*|\*)x([1-9]\d*|\*)", text):
        rows, inputs = (0 if size == "*" else int(size) for size in match.groups())
        return Blocks(rows, inputs)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match and 0 < int(match[1]) < int(match[2]):
        return NofM(int(match[1]), int(match[2]))
    raise ValueError(
        f"granularity {text!r}: expected element, row, column, block:RxC (such as block:4x4, or block:16x* for whole "
        "rows), or N:M with N below M (such as 2:4)"
    )


def _max_size(sizes: Tensor | int) -> int:
    return sizes if isinstance(sizes, int) else int(sizes.max())


def _promote_best(scores: Tensor, candidates: Tensor) -> Tensor:
    """Set the score of a parameter's best candidate to infinity, so that every parameter keeps at least one group."""
    if not candidates.any():
        return scores
    ranked = torch.nan_to_num(scores.float(), nan=-torch.inf).masked_fill(~candidates, -torch.inf)
    best = torch.zeros_like(candidates).flatten()
    best[ranked.argmax()] = True
    return scores.masked_fill(best.view(scores.shape), torch.inf)
