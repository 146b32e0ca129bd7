"""Hand-tiled CPU kernels, several times faster than the torch operations that they replace.

They evaluate `F.conv2d`, `F.linear` and `F.softplus` tile by tile, so that intermediate results stay in a core's cache,
and store less for the backward pass. The tiling is internal to this module.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_pathways.models.regularizers import balancing_coefficients
from icefall_pathways.torch_compat import cpu_autocast_dtype, is_exporting

#: Slope of the linear term of both Swoosh functions.
SWOOSH_SLOPE = 0.08
#: Largest argument of the exponential in both Swoosh functions: above, log(k + exp(s)) is s in float32.
MAX_EXPONENT = 30.0

# Elements per tile.
_TILE = 1 << 16

# Rows per convolution call when computing the gradient of a depthwise kernel: of one image, and of several short images
# together.
_ROWS = 64
_ROWS_OF_SHORT_IMAGES = 1024


def use_cpu_kernels(x: Tensor) -> bool:
    """Return True if `x` is on a CPU and its operations are not being exported to a graph."""
    return x.device.type == "cpu" and not is_exporting()


def tiled_swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    """Return log(1 + exp(x - shift)) - 0.08 x - offset, without gradients.

    Args:
      x: Any shape, float32 or float64.
      shift: Constant of the formula.
      offset: Constant of the formula.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    for tile in _tiles(x.numel(), _TILE):
        _swoosh_tile(x.view(-1)[tile], shift, offset, out.view(-1)[tile], None)
    return out


def _swoosh_tile(x: Tensor, shift: float, offset: float, out: Tensor, inverse: Tensor | None) -> None:
    """Write the value into `out` and, if `inverse` is not None, the input of the backward pass into `inverse`.

    torch vectorizes exp and log; softplus takes four times as long. With s = x - shift - offset and
    k = exp(-offset), log(1 + exp(x - shift)) - offset is log(k + exp(s)); `inverse` is 1 / (k + exp(s)).
    """
    s = torch.sub(x, shift + offset)
    exponential = s.clamp(max=MAX_EXPONENT).exp_().add_(math.exp(-offset))
    if inverse is not None:
        torch.reciprocal(exponential, out=inverse)
    torch.maximum(s, exponential.log_(), out=out).add_(x, alpha=-SWOOSH_SLOPE)


def _swoosh_tile_backward(grad: Tensor, inverse: Tensor, offset: float, out: Tensor) -> Tensor:
    """Write `grad` times sigmoid(x - shift) - 0.08 into `out`."""
    return torch.mul(grad, 1.0 - SWOOSH_SLOPE, out=out).addcmul_(grad, inverse, value=-math.exp(-offset))


class TiledSwoosh(torch.autograd.Function):
    """`tiled_swoosh` with gradients, for any floating-point dtype; same arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: float, offset: float) -> Tensor:
        """Return the value."""
        exact = x.contiguous().to(torch.promote_types(x.dtype, torch.float32))
        out = torch.empty_like(exact)
        inverse = torch.empty_like(exact) if x.requires_grad else None
        for tile in _tiles(exact.numel(), _TILE):
            inverse_tile = None if inverse is None else inverse.view(-1)[tile]
            _swoosh_tile(exact.view(-1)[tile], shift, offset, out.view(-1)[tile], inverse_tile)
        if inverse is not None:
            ctx.save_for_backward(inverse.to(x.dtype))
        ctx.offset = offset
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of `x`."""
        (inverse,) = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        for tile in _tiles(grad.numel(), _TILE):
            _swoosh_tile_backward(grad.view(-1)[tile], inverse.view(-1)[tile], ctx.offset, out.view(-1)[tile])
        return out, None, None


def tiled_swoosh_block(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shift: float, offset: float
) -> Tensor:
    """Return linear(swoosh(linear(x))) for rows x (R, C), without gradients.

    Args:
      x: (R, C).
      weight1: (H, C).
      bias1: (H,).
      weight2: (D, H).
      bias2: (D,).
      shift: Constant of Swoosh; see `tiled_swoosh`.
      offset: Constant of Swoosh.

    Returns:
      (R, D).
    """
    # The biases absorb the constants, and the first layer outputs `s` of Swoosh.
    constant = shift + offset
    bias1 = (bias1 - constant).unsqueeze(0)
    bias2 = bias2 - SWOOSH_SLOPE * constant * weight2.sum(dim=1)
    first, second = weight1.t().contiguous(), weight2.t().contiguous()
    out = x.new_empty(x.size(0), weight2.size(0))
    for tile in _tiles(x.size(0), max(1, _TILE // weight1.size(0))):
        s = torch.mm(x[tile], first).add_(bias1)
        softplus = s.clamp(max=MAX_EXPONENT).exp_().add_(math.exp(-offset)).log_()
        torch.addmm(bias2, torch.maximum(s, softplus).add_(s, alpha=-SWOOSH_SLOPE), second, out=out[tile])
    return out


class TiledSwooshBlock(torch.autograd.Function):
    """Linear, balancer, Swoosh and linear over rows (R, C), with gradients; see `functions.swoosh_l_block`.

    The hidden values before and after Swoosh are stored for the backward pass: 8 H bytes per row in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        shift: float,
        offset: float,
        limits: tuple[float, float, float, float] | None,
        grad_scale: float,
    ) -> Tensor:
        """Return the value (R, D)."""
        width, rows = weight1.size(0), max(1, _TILE // weight1.size(0))
        stored_rows = x.size(0) if any(ctx.needs_input_grad) else rows
        hidden, value = x.new_empty(stored_rows, width), x.new_empty(stored_rows, width)
        out = x.new_empty(x.size(0), weight2.size(0))
        total, total_square = x.new_zeros(width), x.new_zeros(width)
        for tile in _tiles(x.size(0), rows):
            stored = slice(tile.start % stored_rows, tile.start % stored_rows + tile.stop - tile.start)
            torch.addmm(bias1, x[tile], weight1.t(), out=hidden[stored])
            if limits is not None:
                total += hidden[stored].sum(dim=0)
                total_square += hidden[stored].square().sum(dim=0)
            _swoosh_tile(hidden[stored], shift, offset, value[stored], None)
            torch.addmm(bias2, value[stored], weight2.t(), out=out[tile])
        ctx.coefficients = None
        if limits is not None:
            means = total / x.size(0), total_square / x.size(0)
            ctx.coefficients = balancing_coefficients(*means, limits, grad_scale)
        ctx.offset = offset
        ctx.save_for_backward(x, weight1, weight2, hidden, value)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `x`, both weights and both biases."""
        x, weight1, weight2, hidden, value = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad_weight1, grad_bias1 = torch.zeros_like(weight1), weight1.new_zeros(weight1.size(0))
        for tile in _tiles(x.size(0), max(1, _TILE // weight1.size(0))):
            # Recompute 1 / (k + exp(s)) of `_swoosh_tile` from its output.
            inverse = torch.add(value[tile], hidden[tile], alpha=SWOOSH_SLOPE).neg_().exp_()
            grad_value = torch.mm(grad[tile], weight2)
            grad_hidden = _swoosh_tile_backward(grad_value, inverse, ctx.offset, out=torch.empty_like(grad_value))
            if ctx.coefficients is not None:
                a, b = ctx.coefficients
                edit = torch.addcmul(a, hidden[tile], b, out=inverse)
                grad_hidden.addcmul_(edit, grad_hidden.abs())
            grad_weight1.addmm_(grad_hidden.t(), x[tile])
            grad_bias1 += grad_hidden.sum(dim=0)
            torch.mm(grad_hidden, weight1, out=grad_x[tile])
        return grad_x, grad_weight1, grad_bias1, torch.mm(grad.t(), value), grad.sum(dim=0), None, None, None, None


def _tiles(size: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, size)) for start in range(0, size, tile)]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Apply a depthwise 2-D convolution to channels-last maps.

    Under autocast, a CPU computes it in float32: oneDNN's depthwise convolution in bfloat16 (of torch 2.13) does not
    return for some shapes, on CPUs with bfloat16 instructions.

    Args:
      x: (N, A, B, C).
      weight: (C, 1, a, b).
      bias: (C,).
      padding: Zeros added on both sides of the axes A and B.

    Returns:
      (N, A + 2 * padding[0] - a + 1, B + 2 * padding[1] - b + 1, C).
    """
    autocast_dtype = cpu_autocast_dtype()
    if x.device.type == "cpu" and autocast_dtype is not None:
        with torch.amp.autocast_mode.autocast("cpu", enabled=False):
            return depthwise_conv2d(x.float(), weight, bias, padding).to(autocast_dtype)
    maps = x.permute(0, 3, 1, 2)
    # With a single row, torch's own gradient is faster.
    if x.size(1) > 1 and use_cpu_kernels(x) and torch.is_grad_enabled():
        out: Tensor = _DepthwiseConv2d.apply(maps, weight, bias, padding)
    else:
        out = _conv2d(maps, weight, bias, padding)
    return out.permute(0, 2, 3, 1)


def _conv2d(maps: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(maps, weight, bias, padding=padding, groups=maps.size(1))


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return _conv2d(maps, weight, bias, padding)

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
    """Return the gradient of the input: the gradient of the output convolved with the flipped kernels."""
    vertical, horizontal = (size - 1 - zeros for size, zeros in zip(weight.shape[2:], padding, strict=True))
    return _conv2d(F.pad(grad, (horizontal, horizontal, vertical, vertical)), weight.flip(2, 3), None, (0, 0))


def _kernel_gradient(maps: Tensor, grad: Tensor, kernel: torch.Size, padding: tuple[int, int]) -> Tensor:
    """Return the gradient of the kernels (C, 1, a, b): the input convolved with the gradient of the output.

    torch's own function takes three to five times as long.
    """
    vertical, horizontal = padding
    maps = F.pad(maps, (horizontal, horizontal, vertical, vertical))
    total = grad.new_zeros(grad.size(1), 1, *kernel)
    images = max(1, _ROWS_OF_SHORT_IMAGES // grad.size(2)) if grad.size(2) <= _ROWS else 1
    for maps_part, grad_part in zip(maps.split(images), grad.split(images), strict=True):
        for start in range(0, grad.size(2), _ROWS):
            kernels = grad_part[:, :, start : start + _ROWS].flatten(0, 1)
            rows = maps_part[:, :, start : start + kernels.size(1) + kernel[0] - 1].flatten(0, 1)
            gradients = _conv2d(rows.unsqueeze(0), kernels.unsqueeze(1), None, (0, 0))
            total += gradients.view(len(maps_part), *total.shape).sum(dim=0)
    return total
