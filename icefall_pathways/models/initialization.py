"""Weight initialization."""

import torch
from torch import nn


def scale_initial_values(layer: nn.Linear | nn.Conv2d, scale: float) -> None:
    """Multiply the initial weights by `scale`, and draw the bias, if any, from U(-0.1 scale, 0.1 scale)."""
    with torch.no_grad():
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.uniform_(-0.1 * scale, 0.1 * scale)


def scaled_linear(
    in_features: int, out_features: int, scale: float, bias: bool = True, layer_class: type[nn.Linear] = nn.Linear
) -> nn.Linear:
    """Create a linear layer of `layer_class`, initialized by `scale_initial_values`."""
    linear = layer_class(in_features, out_features, bias=bias)
    scale_initial_values(linear, scale)
    return linear
