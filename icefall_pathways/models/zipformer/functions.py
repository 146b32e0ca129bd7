"""Swoosh activations and bias normalisation, computed fast and with little kept for the backward pass."""

import math
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_pathways.models.regularizers import balance, balancing_coefficients

_SLOPE = 0.08
_SHIFT_L, _OFFSET_L = 4.0, 0.035
_SHIFT_R, _OFFSET_R = 1.0, 0.313261687

# Numbers of a tile that is worked on at a time: few enough to stay in a core's cache from one operation to the next.
_TILE = 1 << 16


def swoosh_l(x: Tensor) -> Tensor:
    """log(1 + exp(x - 4)) - 0.08 x - 0.035, for modules that are to be near zero when they do nothing."""
    return _swoosh(x, _SHIFT_L, _OFFSET_L)


def swoosh_r(x: Tensor) -> Tensor:
    """log(1 + exp(x - 1)) - 0.08 x - 0.313261687, which is 0 at 0."""
    return _swoosh(x, _SHIFT_R, _OFFSET_R)


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    if x.device.type != "cpu" or torch.onnx.is_in_onnx_export():
        return F.softplus(x - shift) - _SLOPE * x - offset
    if not torch.is_grad_enabled() and x.dtype in (torch.float32, torch.float64):
        out: Tensor = _tiled_swoosh(x, shift, offset, _TILE)
        return out
    out = _Swoosh.apply(x, shift, offset)
    return out


@torch.jit.script  # like all of its kind here, so that a trace has their loops
def _cpu_swoosh(x: Tensor, shift: float, offset: float, out: Tensor, inverse: Optional[Tensor]) -> None:  # noqa: UP045
    """The value into `out`, and what the derivative is made of into `inverse` (None: not wanted).

    In exp and log, which torch hands to a vector library; its softplus takes four times as long. With s = x - shift -
    offset and k = exp(-offset), log(1 + exp(x - shift)) - offset is log(k + exp(s)); `inverse` is 1 / (k + exp(s)).
    """
    s = torch.sub(x, shift + offset)
    grown = s.clamp(max=30.0).exp_().add_(math.exp(-offset))  # beyond, log(k + exp(s)) is s in float32
    if inverse is not None:
        torch.reciprocal(grown, out=inverse)
    torch.maximum(s, grown.log_(), out=out).add_(x, alpha=-0.08)


@torch.jit.script
def _tiled_swoosh(x: Tensor, shift: float, offset: float, tile: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel() <= tile:
        _cpu_swoosh(x, shift, offset, out, None)
        return out
    flat, flat_out = x.view(-1), out.view(-1)
    for start in range(0, x.numel(), tile):
        end = min(start + tile, x.numel())
        _cpu_swoosh(flat[start:end], shift, offset, flat_out[start:end], None)
    return out


@torch.jit.script
def _tiled_block(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, shift: float, offset: float, tile: int
) -> Tensor:
    """`swoosh_l_block` of x (R, C) without what training needs.

    As `_cpu_swoosh`, with less to do: `s` comes out of the first layer, and what is constant goes into the biases.
    """
    constant = shift + offset
    bias1 = (bias1 - constant).unsqueeze(0)
    bias2 = bias2 - 0.08 * constant * weight2.sum(dim=1)
    first, second = weight1.t().contiguous(), weight2.t().contiguous()
    out = torch.empty([x.size(0), weight2.size(0)], dtype=x.dtype, device=x.device)
    rows = max(1, tile // weight1.size(0))
    for start in range(0, x.size(0), rows):
        end = min(start + rows, x.size(0))
        s = torch.mm(x[start:end], first).add_(bias1)
        grown = s.clamp(max=30.0).exp_().add_(math.exp(-offset)).log_()
        torch.addmm(bias2, torch.maximum(s, grown).add_(s, alpha=-0.08), second, out=out[start:end])
    return out


def _cpu_swoosh_backward(grad: Tensor, inverse: Tensor, offset: float, out: Tensor) -> Tensor:
    """`grad` times sigmoid(x - shift) - 0.08, into `out`."""
    return torch.mul(grad, 1.0 - _SLOPE, out=out).addcmul_(grad, inverse, value=-math.exp(-offset))


class _Swoosh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: float, offset: float) -> Tensor:
        exact = x.contiguous().to(torch.promote_types(x.dtype, torch.float32))
        out = torch.empty_like(exact)
        inverse = torch.empty_like(exact) if x.requires_grad else None
        for tile in _tiles(exact.numel(), _TILE):
            part = None if inverse is None else inverse.view(-1)[tile]
            _cpu_swoosh(exact.view(-1)[tile], shift, offset, out.view(-1)[tile], part)
        if inverse is not None:
            ctx.save_for_backward(inverse.to(x.dtype))
        ctx.offset = offset
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        for tile in _tiles(grad.numel(), _TILE):
            _cpu_swoosh_backward(grad.view(-1)[tile], inverse.view(-1)[tile], ctx.offset, out.view(-1)[tile])
        return out, None, None


def by_hand(x: Tensor) -> bool:
    """Whether what is quick on a CPU is to be done: not elsewhere, nor in a graph that is being exported."""
    return x.device.type == "cpu" and not torch.jit.is_tracing()


def _tiles(size: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, size)) for start in range(0, size, tile)]


def swoosh_l_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    limits: tuple[float, float, float, float] | None,
    grad_scale: float,
) -> Tensor:
    """Linear, SwooshL, linear over very many frames, a few at a time, so that what is at work stays in the cache.

    For the backward pass the hidden values before and after SwooshL are kept: 8 H bytes a frame, in float32.

    Args:
      x: (..., C).
      weight1: (H, C).
      bias1: (H,).
      weight2: (D, H).
      bias2: (D,).
      limits: Of a balancer of the hidden channels, see `Balancer.draw`; None for none.
      grad_scale: Of the balancer.

    Returns:
      (..., D).
    """
    if not torch.is_grad_enabled() and limits is None and x.device.type == "cpu" and x.dtype == weight1.dtype:
        rows = _tiled_block(x.flatten(0, -2), weight1, bias1, weight2, bias2, _SHIFT_L, _OFFSET_L, _TILE)
        return rows.unflatten(0, x.shape[:-1])
    if not by_hand(x) or x.dtype != weight1.dtype:  # another type: under autocast
        hidden = F.linear(x, weight1, bias1)
        if limits is not None:
            hidden = balance(hidden, limits, grad_scale)
        return F.linear(swoosh_l(hidden), weight2, bias2)
    out: Tensor = _SwooshLBlock.apply(x.flatten(0, -2), weight1, bias1, weight2, bias2, limits, grad_scale)
    return out.unflatten(0, x.shape[:-1])


class _SwooshLBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        limits: tuple[float, float, float, float] | None,
        grad_scale: float,
    ) -> Tensor:
        width, rows = weight1.size(0), max(1, _TILE // weight1.size(0))
        kept = x.size(0) if any(ctx.needs_input_grad) else rows
        hidden, value = x.new_empty(kept, width), x.new_empty(kept, width)
        out = x.new_empty(x.size(0), weight2.size(0))
        total, total_square = x.new_zeros(width), x.new_zeros(width)
        for tile in _tiles(x.size(0), rows):
            here = slice(tile.start % kept, tile.start % kept + tile.stop - tile.start)
            torch.addmm(bias1, x[tile], weight1.t(), out=hidden[here])
            if limits is not None:
                total += hidden[here].sum(dim=0)
                total_square += hidden[here].square().sum(dim=0)
            _cpu_swoosh(hidden[here], _SHIFT_L, _OFFSET_L, value[here], None)
            torch.addmm(bias2, value[here], weight2.t(), out=out[tile])
        ctx.coefficients = None
        if limits is not None:
            means = total / x.size(0), total_square / x.size(0)
            ctx.coefficients = balancing_coefficients(*means, limits, grad_scale)
        ctx.save_for_backward(x, weight1, weight2, hidden, value)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, hidden, value = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        grad_weight1, grad_bias1 = torch.zeros_like(weight1), weight1.new_zeros(weight1.size(0))
        for tile in _tiles(x.size(0), max(1, _TILE // weight1.size(0))):
            # 1 / (k + exp(s)) of `_cpu_swoosh`, from its value.
            inverse = torch.add(value[tile], hidden[tile], alpha=_SLOPE).neg_().exp_()
            grad_value = torch.mm(grad[tile], weight2)
            grad_hidden = _cpu_swoosh_backward(grad_value, inverse, _OFFSET_L, out=torch.empty_like(grad_value))
            if ctx.coefficients is not None:
                a, b = ctx.coefficients
                edit = torch.addcmul(a, hidden[tile], b, out=inverse)
                grad_hidden.addcmul_(edit, grad_hidden.abs())
            grad_weight1.addmm_(grad_hidden.t(), x[tile])
            grad_bias1 += grad_hidden.sum(dim=0)
            torch.mm(grad_hidden, weight1, out=grad_x[tile])
        return grad_x, grad_weight1, grad_bias1, torch.mm(grad.t(), value), grad.sum(dim=0), None, None


def bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """x * exp(log_scale) / rms(x - bias) over the last axis, in float32 or better.

    Args:
      x: (..., C).
      bias: (C,).
      log_scale: ().
    """
    x = x.to(torch.promote_types(x.dtype, bias.dtype))
    if not torch.is_grad_enabled():
        length = torch.linalg.vector_norm(x - bias, dim=-1, keepdim=True)
        return x * (log_scale.exp() * math.sqrt(x.size(-1)) / length)
    out: Tensor = _BiasNorm.apply(x, bias, log_scale)
    return out


def _inverse_rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=-1, keepdim=True).rsqrt()


class _BiasNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
        inverse, scale = _inverse_rms(x - bias), log_scale.exp()
        ctx.save_for_backward(x, bias, inverse, scale)
        return x * (inverse * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, bias, inverse, scale = ctx.saved_tensors
        factor = inverse * scale
        along = (grad * x).sum(dim=-1, keepdim=True) * factor
        through_length = (x - bias).mul_(along * inverse.square() / x.size(-1))
        grad_bias = through_length.flatten(0, -2).sum(dim=0)
        return torch.mul(grad, factor).sub_(through_length), grad_bias, along.sum()
