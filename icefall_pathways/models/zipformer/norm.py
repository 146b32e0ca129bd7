"""BiasNorm and bypass modules."""

import torch
from torch import Tensor, nn

from icefall_pathways.models.regularizers import Schedule, Scheduled, ScheduledFloat, keep_sequences, limit_gradient
from icefall_pathways.models.zipformer.functions import bias_norm
from icefall_pathways.torch_compat import is_exporting

# Probability of limiting the gradient of a parameter.
_LIMIT_PROBABILITY = 0.6


class BiasNorm(Scheduled):
    """y = x * exp(log_scale) / rms(x - bias): the bias affects only the root mean square.

    Args:
      dim: Width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(1e-4 * torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., dim)."""
        log_scale = limit_gradient(self.log_scale, -1.5, 1.5) if self.sample(_LIMIT_PROBABILITY) else self.log_scale
        return bias_norm(x, self.bias, log_scale)


class Bypass(Scheduled):
    """A learned weighted mean of a module's input and output, per channel.

    Args:
      dim: Width.
      skip_rate: Probability of skipping the module in training, per sequence.
    """

    _MIN_SCALE = Schedule((0, 0.9), (20000, 0.2))

    def __init__(self, dim: int, skip_rate: ScheduledFloat = 0.0) -> None:
        super().__init__()
        self.skip_rate = skip_rate
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """Interpolate between the input `start` and the output `x`, both (N, T, dim)."""
        scale: Tensor = self.bypass_scale
        if self.sample(_LIMIT_PROBABILITY):
            scale = limit_gradient(scale, self.value_at(self._MIN_SCALE), 1.0)
        if skip_rate := self.rate(self.skip_rate):
            scale = scale * keep_sequences(x, skip_rate)
        if is_exporting():
            return start + (x - start) * scale  # torch.lerp has a graph of eight nodes
        # Under autocast, `x` has half precision and the scale full precision.
        dtype = torch.promote_types(torch.promote_types(start.dtype, x.dtype), scale.dtype)
        return torch.lerp(start.to(dtype), x.to(dtype), scale.to(dtype))
