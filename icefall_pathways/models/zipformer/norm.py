"""Normalisation and bypass."""

import torch
from torch import Tensor, nn

from icefall_pathways.models.zipformer.functions import bias_norm


class BiasNorm(nn.Module):
    """y = x * exp(log_scale) / rms(x - bias): the bias takes part in the length alone.

    Args:
      dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(1e-4 * torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., dim)."""
        return bias_norm(x, self.bias, self.log_scale)


class Bypass(nn.Module):
    """A learnt mean of a module's input and output, channel by channel.

    Args:
      dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """Between `start` and `x`, both (..., dim)."""
        return torch.lerp(start, x, self.bypass_scale.to(x.dtype))
