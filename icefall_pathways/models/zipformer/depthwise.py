"""Depthwise convolutions of data with the channels last."""

import torch.nn.functional as F
from torch import Tensor

# Columns of a piece in which the gradient of a kernel is summed up: a longer piece leaves the cache before it is done.
_PIECE = 64


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Convolve every channel with a kernel of its own.

    Args:
      x: (N, A, B, C).
      weight: (C, 1, a, b).
      bias: (C,).
      padding: Zeros before and after, on the axes A and B.

    Returns:
      (N, A + 2 * padding[0] - a + 1, B + 2 * padding[1] - b + 1, C).
    """
    out: Tensor = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=x.size(-1))
    return out.permute(0, 2, 3, 1)
