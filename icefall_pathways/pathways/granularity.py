"""What is pruned as one: single entries, blocks, rows, columns, or N of every M entries.

A parameter is seen as a matrix with a row for each output unit: (out, in) for a linear layer, (out, in x kernel) for a
convolution, the kernel's places of an input channel side by side. A recurrent layer's matrices have a row for each gate
of each unit, (4H, in) and (4H, H) for an LSTM: a row is one gate of one unit.

  element     one entry
  block:RxC   R rows by C columns; `*` is all of them: `block:16x*` is a head of 16 outputs in a projection
  row         all that one output unit reads: a neuron, an output channel
  column      all that reads one input: an input channel with its whole kernel (in a convolution with groups, the same
              channel of each group; a depthwise convolution is one single column)
  N:M         no group: of every M entries side by side in a row, N stay (2:4 is what sparse tensor cores run)

Where R or C does not divide the matrix, the last groups are smaller. A group's score is the mean of its entries', so
smaller groups compete fairly.
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
    """How many of `num_entries` stay at `sparsity`: the nearest whole number.

    Raises:
      ValueError: `sparsity` is not within 0 (nothing pruned) and below 1.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected at least 0 and below 1 (0.7 removes 70 %)")
    return round((1 - sparsity) * num_entries)


class Granularity(ABC):
    """What is pruned as one."""

    #: Whether tensors may share one budget (global allocation) or differ in sparsity.
    shares_budget = True

    @abstractmethod
    def select(self, scores: Sequence[Tensor], candidates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Choose what stays of some parameters which share one budget.

        Args:
          scores: A score per entry for each parameter; the larger, the better.
          candidates: Bool, which entries may be chosen.
          sparsity: Share of all entries together, candidates or not, that is not chosen.

        Returns:
          Bool tensors of the parameters' shapes.

        Raises:
          ValueError: The candidates cut through groups.
        """

    @abstractmethod
    def matches(self, mask: Tensor) -> bool:
        """Whether a mask, or a tensor of codes, of a parameter's shape could have come from this granularity."""

    @abstractmethod
    def check_sparsity(self, sparsity: float) -> None:
        """Check that it can end at a sparsity.

        Raises:
          ValueError: It cannot; the message says which one it can.
        """


@dataclass(frozen=True)
class Blocks(Granularity):
    """Rectangular groups, single entries among them.

    The kept entries differ from what the sparsity asks for by half the largest group at most: not at all for single
    entries. At least one group stays in every parameter, since a layer without weights passes nothing on.

    Attributes:
      rows: Rows of a group; 0 is all of them.
      inputs: Columns of a group; 0 is all of them.
      whole_kernels: Count `inputs` in input channels, each with its kernel.
    """

    rows: int = 1
    inputs: int = 1
    whole_kernels: bool = False

    def select(self, scores: Sequence[Tensor], candidates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Keep the groups of largest mean score; of equal ones, the first."""
        for alive in candidates:
            if not self.matches(alive):
                raise ValueError(
                    f"the masks cut through groups of {self}: prune masks of the same granularity, or dense"
                )
        means = [self._means(score) for score in scores]
        alive_groups = [self._first(alive) for alive in candidates]
        sizes = [self._sizes(alive) for alive in candidates]
        largest = max(_largest(size) for size in sizes)
        budget = num_kept(sum(alive.numel() for alive in candidates), sparsity)
        if len(means) > 1:
            means = [_with_best_at_top(mean, alive) for mean, alive in zip(means, alive_groups, strict=True)]
        kept = top_k_joint(means, alive_groups, sizes, max(budget + largest // 2, largest))
        return [self._spread(groups, alive.shape) for groups, alive in zip(kept, candidates, strict=True)]

    def matches(self, mask: Tensor) -> bool:
        """Whether all entries of every group are equal."""
        return self._extent(mask.shape) == (1, 1) or torch.equal(self._spread(self._first(mask), mask.shape), mask)

    def check_sparsity(self, sparsity: float) -> None:
        """Any sparsity will do; see `num_kept` for its range."""
        num_kept(1, sparsity)

    def _extent(self, shape: torch.Size) -> tuple[int, int]:
        """Rows and columns of a group in the matrix of a parameter."""
        kernel = math.prod(shape[2:]) if self.whole_kernels else 1
        columns = math.prod(shape[1:])
        return min(self.rows or shape[0], shape[0]), min(self.inputs * kernel or columns, columns)

    def _first(self, values: Tensor) -> Tensor:
        """The first entry of every group."""
        rows, columns = self._extent(values.shape)
        return values.flatten(1)[::rows, ::columns]

    def _spread(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Give all entries of a group the value of the group."""
        rows, columns = self._extent(shape)
        height, width = shape[0], math.prod(shape[1:])
        if (rows, columns) == (1, 1):
            return groups.reshape(shape)
        tall = groups.repeat_interleave(rows, 0)[:height]
        return tall.repeat_interleave(columns, 1)[:, :width].reshape(shape)

    def _means(self, scores: Tensor) -> Tensor:
        rows, columns = self._extent(scores.shape)
        matrix = scores.detach().flatten(1)
        if (rows, columns) == (1, 1):
            return matrix
        height, width = matrix.shape
        padded = F.pad(matrix.float(), (0, -width % columns, 0, -height % rows))
        sums = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum((1, 3))
        return sums / self._sizes(scores)

    def _sizes(self, like: Tensor) -> Tensor | int:
        """Entries of each group of a parameter; a number where they are all alike."""
        rows, columns = self._extent(like.shape)
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
    """Of every `m` entries side by side in a row, `n` stay.

    At a sparsity on the way there, as in iterative pruning, it is the nearest whole number of every `m`. The last
    entries of a row, if fewer than `m`, are pruned to the nearest whole number likewise.
    """

    n: int
    m: int

    shares_budget = False

    def select(self, scores: Sequence[Tensor], candidates: Sequence[Tensor], sparsity: float) -> list[Tensor]:
        """Keep those of largest score; of equal ones, the first."""
        return [self._keep(score, alive, sparsity) for score, alive in zip(scores, candidates, strict=True)]

    def _keep(self, scores: Tensor, candidates: Tensor, sparsity: float) -> Tensor:
        alive = candidates.flatten(1)
        # Candidates of the lowest score come before what is no candidate.
        ranked = torch.nan_to_num(scores.detach().float(), nan=_LOWEST, posinf=torch.inf, neginf=_LOWEST).flatten(1)
        ranked = ranked.masked_fill(~alive, -torch.inf)
        whole = ranked.size(1) // self.m * self.m
        kept = torch.zeros_like(alive)
        for begin, end, width in ((0, whole, self.m), (whole, ranked.size(1), ranked.size(1) - whole)):
            if width:
                groups = ranked[:, begin:end].unflatten(1, (-1, width))
                order = groups.sort(dim=2, descending=True, stable=True).indices[..., : num_kept(width, sparsity)]
                kept[:, begin:end] = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order, True).flatten(1)
        # Where there are fewer candidates than may stay, others have come with them.
        return (kept & alive).view(candidates.shape)

    def matches(self, mask: Tensor) -> bool:
        """Whether every language keeps at most `n` of every `m` (or everything: a dense one)."""
        bits = 1 if mask.dtype == torch.bool else torch.iinfo(mask.dtype).bits
        matrix = mask.flatten(1).to(torch.int64) if mask.dtype == torch.bool else mask.flatten(1)
        whole = matrix.size(1) // self.m * self.m
        for bit in range(bits if whole else 0):
            counts = (matrix[:, :whole] >> bit & 1).unflatten(1, (-1, self.m)).sum(2)
            if not ((counts <= self.n).all() or (counts == self.m).all()):
                return False
        return True

    def check_sparsity(self, sparsity: float) -> None:
        """Check that it is that of `n` of `m`."""
        own = 1 - self.n / self.m
        if not math.isclose(sparsity, own, abs_tol=1e-6):
            raise ValueError(
                f"{self} keeps {self.n} of every {self.m} entries, which is a sparsity of {own:g}, not {sparsity:g}: "
                f"use --sparsity {own:g}, or another --granularity"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def parse_granularity(text: str) -> Granularity:
    """Read a granularity as options and masks' headers write it.

    Raises:
      ValueError: It is none.
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


def _largest(sizes: Tensor | int) -> int:
    return sizes if isinstance(sizes, int) else int(sizes.max())


def _with_best_at_top(scores: Tensor, candidates: Tensor) -> Tensor:
    """A parameter's best candidate must win against those of all other parameters."""
    if not candidates.any():
        return scores
    ranked = torch.nan_to_num(scores.float(), nan=-torch.inf).masked_fill(~candidates, -torch.inf)
    best = torch.zeros_like(candidates).flatten()
    best[ranked.argmax()] = True
    return scores.masked_fill(best.view(scores.shape), torch.inf)
