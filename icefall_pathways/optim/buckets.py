"""Flat parameter buckets, so that an optimizer step takes few operations for any number of tensors."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.bits import clear_inactive_, to_bits
from icefall_pathways.pathways.masks import PathwayMasks

# Approximate number of entries per bucket, so that intermediate results stay in a CPU's cache. Buckets with a larger
# parameter are larger.
_BUCKET_SIZE = 2**18


class Bucket:
    """Concatenated parameters of one dtype, n entries in total.

    Attributes:
      names: The names of the parameters in the masks.
      parameters: The parameters.
      sizes: Number of entries of each parameter.
      device_sizes: `sizes` as a tensor on the parameters' device, so that no step has to copy it.
      masked: Whether masks cover the parameters.
      state: The optimizer's state: flat tensors (n,) by name.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], masked: bool) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.device_sizes = torch.tensor(self.sizes, device=self.parameters[0].device)
        self.masked = masked
        self.state: dict[str, Tensor] = {}

    def split(self, values: Tensor) -> list[Tensor]:
        """Split a flat tensor (n,) into views with the shapes of the parameters."""
        pieces = values.split(self.sizes)
        return [piece.view(parameter.shape) for piece, parameter in zip(pieces, self.parameters, strict=True)]

    def join(self, values: Iterable[Tensor]) -> Tensor:
        """Concatenate tensors with the shapes of the parameters into a flat copy (n,)."""
        return torch.cat([value.flatten() for value in values])

    def scale_(self, values: Tensor, factors: Tensor) -> Tensor:
        """Multiply each parameter's part of `values` (n,) by its factor, in place."""
        for piece, factor in zip(values.split(self.sizes), factors.unbind(), strict=True):
            piece.mul_(factor)
        return values

    def weights(self) -> Tensor:
        """Return a copy of the parameters (n,)."""
        return self.join(self.parameters)

    def subtract(self, values: Tensor, alpha: float = 1.0) -> None:
        """Subtract `alpha * values` (n,) from the parameters."""
        for parameter, piece in zip(self.parameters, self.split(values), strict=True):
            parameter.sub_(piece, alpha=alpha)

    def has_gradient(self) -> list[bool]:
        """Return for each parameter whether it has a gradient."""
        return [parameter.grad is not None for parameter in self.parameters]

    def gradient(self, active: Tensor | None) -> Tensor:
        """Return a copy of the gradients (n,), zero where a parameter has none or no bit of `active` is set."""
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters)
        return clear_inactive_(self.join(gradients), active)

    def active_bits(self, masks: PathwayMasks | None, language: str) -> Tensor | None:
        """Return integers (n,) with all bits set where the language's mask keeps the entry; None without masks."""
        if masks is None or not self.masked:
            return None
        return to_bits(masks.flat_mask(self.names, language), self.parameters[0])

    def gradient_bits(self) -> Tensor:
        """Return integers (n,) with all bits set in the entries of parameters that have a gradient."""
        first = self.parameters[0]
        pairs = zip(self.sizes, self.has_gradient(), strict=True)
        present = [torch.full((size,), has, dtype=torch.bool, device=first.device) for size, has in pairs]
        return to_bits(torch.cat(present), first)


def make_buckets(named_parameters: Iterable[tuple[str, nn.Parameter]], masked: Iterable[str]) -> list[Bucket]:
    """Group parameters, in order, into buckets of one dtype and device; those in `masked` have separate buckets."""
    names = set(masked)
    kinds: dict[tuple[bool, torch.dtype, torch.device], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        kinds.setdefault((name in names, parameter.dtype, parameter.device), []).append((name, parameter))
    buckets = []
    for (is_masked, _, _), members in kinds.items():
        ends = torch.tensor([parameter.numel() for _, parameter in members]).cumsum(0)
        indices = torch.div(ends - 1, _BUCKET_SIZE, rounding_mode="floor").tolist()
        indexed = groupby(zip(indices, members, strict=True), key=itemgetter(0))
        buckets += [Bucket([member for _, member in group], is_masked) for _, group in indexed]
    return buckets
