"""Depthwise convolutions of data with the channels last, with a quick way to a kernel's gradient on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_pathways.models.zipformer.functions import by_hand

# Rows of one image in which the gradient of a kernel is summed up at a time, few enough to stay in a core's cache; and
# rows of several short images, enough to be worth a call.
_ROWS = 64
_ROWS_OF_SHORT = 1024


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
            grad_maps = _input_gradient(grad, weight, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _kernel_gradient(maps, grad, weight.shape[2:], ctx.padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=(0, 2, 3))
        return grad_maps, grad_weight, grad_bias, None


def _input_gradient(grad: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """The gradient of the maps: what arrives, convolved with the kernels turned round; torch's own way is slower."""
    vertical, horizontal = (size - 1 - zeros for size, zeros in zip(weight.shape[2:], padding, strict=True))
    return _convolve(F.pad(grad, (horizontal, horizontal, vertical, vertical)), weight.flip(2, 3), None, (0, 0))


def _kernel_gradient(maps: Tensor, grad: Tensor, kernel: torch.Size, padding: tuple[int, int]) -> Tensor:
    """The gradient of the kernels (C, 1, a, b): maps convolved with what arrives, as a convolution with large kernels.

    Torch's own way takes three to five times as long.
    """
    vertical, horizontal = padding
    maps = F.pad(maps, (horizontal, horizontal, vertical, vertical))
    total = grad.new_zeros(grad.size(1), 1, *kernel)
    at_once = max(1, _ROWS_OF_SHORT // grad.size(2)) if grad.size(2) <= _ROWS else 1
    for some, some_grad in zip(maps.split(at_once), grad.split(at_once), strict=True):
        for start in range(0, grad.size(2), _ROWS):
            piece = some_grad[:, :, start : start + _ROWS].flatten(0, 1)
            seen = some[:, :, start : start + piece.size(1) + kernel[0] - 1].flatten(0, 1)
            found = _convolve(seen.unsqueeze(0), piece.unsqueeze(1), None, (0, 0))
            total += found.view(len(some), *total.shape).sum(dim=0)
    return total
