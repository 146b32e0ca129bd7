"""Depthwise convolutions of data with the channels last, with a quick way to a kernel's gradient on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from icefall_pathways.models.zipformer.functions import by_hand

# Rows in which the gradient of a kernel is summed up at a time: few enough to stay in a core's cache.
_ROWS = 64


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
    maps = x.permute(0, 3, 1, 2)
    # With a single row torch's own gradient is the quicker one.
    if x.size(1) > 1 and by_hand(x) and torch.is_grad_enabled() and not torch.is_autocast_cpu_enabled():
        out: Tensor = _Depthwise.apply(maps, weight, bias, padding)
    else:
        out = _convolve(maps, weight, bias, padding)
    return out.permute(0, 2, 3, 1)


def _convolve(maps: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(maps, weight, bias, padding=padding, groups=maps.size(1))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return _convolve(maps, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight = ctx.saved_tensors
        grad_maps = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_maps = conv2d_input(maps.shape, weight, grad, padding=ctx.padding, groups=maps.size(1))
        if ctx.needs_input_grad[1]:
            grad_weight = _kernel_gradient(maps, grad, weight.shape[2:], ctx.padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_maps, grad_weight, grad_bias, None


def _kernel_gradient(maps: Tensor, grad: Tensor, kernel: torch.Size, padding: tuple[int, int]) -> Tensor:
    """The gradient of the kernels (C, 1, a, b): maps convolved with what arrives, as a convolution with large kernels.

    Torch's own way takes three to five times as long.
    """
    vertical, horizontal = padding
    maps = F.pad(maps, (horizontal, horizontal, vertical, vertical))
    total = grad.new_zeros(1, grad.size(1), *kernel)
    for one, one_grad in zip(maps, grad, strict=True):
        for start in range(0, grad.size(2), _ROWS):
            piece = one_grad[:, start : start + _ROWS]
            seen = one[:, start : start + piece.size(1) + kernel[0] - 1]
            total += _convolve(seen.unsqueeze(0), piece.unsqueeze(1), None, (0, 0))
    return total.transpose(0, 1)
