"""Parameters as flat vectors: a step takes a handful of operations, however many tensors a model has."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

_SIZE = 2**18  # entries of a bucket, unless one parameter has more: what is computed on the way stays in a CPU's cache

# Integers as wide as the floating-point types, to look at their bits.
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class Bucket:
    """Parameters of one type, one behind the other: all together, n entries.

    Attributes:
      names: Their names, by which masks know them.
      parameters: The parameters.
      sizes: How many entries each has.
      lengths: The same, where the parameters are: what a device needs in every step is not sent there anew.
      masked: Whether masks cover them.
      state: Flat tensors (n,) of an optimizer's state.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], masked: bool) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.lengths = torch.tensor(self.sizes, device=self.parameters[0].device)
        self.masked = masked
        self.state: dict[str, Tensor] = {}

    def split(self, values: Tensor) -> list[Tensor]:
        """Each parameter's part of a flat tensor (n,), as a view of the parameter's shape."""
        pieces = values.split(self.sizes)
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def join(self, values: Iterable[Tensor]) -> Tensor:
        """The opposite of `split`: a copy."""
        return torch.cat([value.flatten() for value in values])

    def scale_(self, values: Tensor, factors: Tensor) -> Tensor:
        """Multiply each parameter's part of `values` (n,) by its factor, in place."""
        for piece, factor in zip(values.split(self.sizes), factors.unbind(), strict=True):
            piece.mul_(factor)
        return values

    def weights(self) -> Tensor:
        """A copy of the parameters (n,)."""
        return self.join(self.parameters)

    def subtract(self, values: Tensor, alpha: float = 1.0) -> None:
        """Subtract `alpha * values` (n,) from the parameters."""
        for parameter, piece in zip(self.parameters, self.split(values), strict=True):
            parameter.sub_(piece, alpha=alpha)

    def with_gradient(self) -> list[bool]:
        """Which of the parameters have a gradient."""
        return [parameter.grad is not None for parameter in self.parameters]

    def gradient(self, active: Tensor | None) -> Tensor:
        """A copy of the gradients (n,), zero where there is none and where no bit of `active` is set."""
        found = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters)
        return cleared(self.join(found), active)

    def active_bits(self, masks: PathwayMasks | None, language: str) -> Tensor | None:
        """All bits of an entry set where the language's mask keeps it, none elsewhere (n,); None without masks."""
        if masks is None or not self.masked:
            return None
        return bits_of(masks.flat_mask(self.names, language), self.parameters[0])

    def present_bits(self) -> Tensor:
        """All bits set in the entries of parameters that have a gradient, none elsewhere (n,)."""
        first = self.parameters[0]
        pairs = zip(self.sizes, self.with_gradient(), strict=True)
        present = [torch.full((size,), has, dtype=torch.bool, device=first.device) for size, has in pairs]
        return bits_of(torch.cat(present), first)


def make_buckets(named_parameters: Iterable[tuple[str, nn.Parameter]], masked: Iterable[str]) -> list[Bucket]:
    """Sort parameters into buckets: those in `masked` and others apart, each kind in the order given."""
    names = set(masked)
    kinds: dict[tuple[bool, torch.dtype, torch.device], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        kinds.setdefault((name in names, parameter.dtype, parameter.device), []).append((name, parameter))
    buckets = []
    for (is_masked, _, _), members in kinds.items():
        ends = torch.tensor([parameter.numel() for _, parameter in members]).cumsum(0)
        numbers = torch.div(ends - 1, _SIZE, rounding_mode="floor").tolist()
        numbered = groupby(zip(numbers, members, strict=True), key=itemgetter(0))
        buckets += [Bucket([member for _, member in some], is_masked) for _, some in numbered]
    return buckets


def bits_of(which: Tensor, like: Tensor) -> Tensor:
    """All bits set where the bool tensor `which` is true, none elsewhere: integers as wide as the numbers in `like`."""
    return which.view(torch.uint8).to(_INTEGERS[like.element_size()]).neg_()


def chosen(values: Tensor, active: Tensor, out: Tensor) -> Tensor:
    """`values` where a bit of `active` is set, else +0.0, put into `out`."""
    torch.bitwise_and(values.view(active.dtype), active, out=out.view(active.dtype))
    return out


def cleared(values: Tensor, active: Tensor | None) -> Tensor:
    """`values`, changed in place to +0.0 where no bit of `active` is set.

    Subtracting +0.0 leaves every number as it is, -0.0 included. Clearing bits is several times quicker than
    `torch.where`, and clears NaN as well.
    """
    if active is not None:
        values.view(active.dtype).bitwise_and_(active)
    return values
