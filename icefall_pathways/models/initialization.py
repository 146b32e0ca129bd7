"""Initial values of weights."""

import torch
from torch import nn


def scale_initial_values(linear: nn.Linear, scale: float) -> None:
    """Make new weights smaller by `scale`; the bias is drawn from U(-0.1 scale, 0.1 scale)."""
    with torch.no_grad():
        linear.weight.mul_(scale)
        linear.bias.uniform_(-0.1 * scale, 0.1 * scale)
