"""Normalisation and bypass."""

import torch
from torch import Tensor, nn

from icefall_pathways.models.regularizers import Schedule, Scheduled, Scheduling, keep_sequences, limit_gradient
from icefall_pathways.models.zipformer.functions import bias_norm

# How often a parameter is kept within its limits.
_LIMITING = 0.6


class BiasNorm(Scheduled):
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
        log_scale = limit_gradient(self.log_scale, -1.5, 1.5) if self.sample(_LIMITING) else self.log_scale
        return bias_norm(x, self.bias, log_scale)


class Bypass(Scheduled):
    """A learnt mean of a module's input and output, channel by channel.

    Args:
      dim: Width.
      skip_rate: How often the module is skipped in training, sequence by sequence.
    """

    _LEAST = Schedule((0, 0.9), (20000, 0.2))

    def __init__(self, dim: int, skip_rate: Scheduling = 0.0) -> None:
        super().__init__()
        self.skip_rate = skip_rate
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """Between `start` and `x`, both (N, T, dim)."""
        scale: Tensor = self.bypass_scale
        if self.sample(_LIMITING):
            scale = limit_gradient(scale, self.value_at(self._LEAST), 1.0)
        if skip_rate := self.rate(self.skip_rate):
            scale = scale * keep_sequences(x, skip_rate)
        # Under autocast, `x` comes out of a layer in half precision, while the scale is as precise as it is stored.
        kind = torch.promote_types(torch.promote_types(start.dtype, x.dtype), scale.dtype)
        return torch.lerp(start.to(kind), x.to(kind), scale.to(kind))
