"""Initial values of weights."""

import torch
from torch import nn


def scale_initial_values(layer: nn.Linear | nn.Conv2d, scale: float) -> None:
    """Make new weights smaller by `scale`; the bias, if any, is drawn from U(-0.1 scale, 0.1 scale)."""
    with torch.no_grad():
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.uniform_(-0.1 * scale, 0.1 * scale)


def scaled_linear(
    in_features: int, out_features: int, scale: float, bias: bool = True, kind: type[nn.Linear] = nn.Linear
) -> nn.Linear:
    """A linear layer, of class `kind`, with the initial values of `scale_initial_values`."""
    linear = kind(in_features, out_features, bias=bias)
    scale_initial_values(linear, scale)
    return linear
