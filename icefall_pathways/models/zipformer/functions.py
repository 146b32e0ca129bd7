"""Swoosh activations and BiasNorm, with fast paths on CPUs and low memory use in the backward pass."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_pathways.models.cpu_kernels import (
    MAX_EXPONENT,
    SWOOSH_SLOPE,
    TiledSwoosh,
    TiledSwooshBlock,
    tiled_swoosh,
    tiled_swoosh_block,
    use_cpu_kernels,
)
from icefall_pathways.models.regularizers import balance
from icefall_pathways.torch_compat import is_exporting

_SHIFT_L, _OFFSET_L = 4.0, 0.035
_SHIFT_R, _OFFSET_R = 1.0, 0.313261687

# Frames per piece of an exported `swoosh_l_block`.
_EXPORTED_FRAMES = 4


def swoosh_l(x: Tensor) -> Tensor:
    """Return log(1 + exp(x - 4)) - 0.08 x - 0.035, for "normally off" modules (feed-forward, ConvNeXt)."""
    return _swoosh(x, _SHIFT_L, _OFFSET_L)


def swoosh_r(x: Tensor) -> Tensor:
    """Return log(1 + exp(x - 1)) - 0.08 x - 0.313261687, which is 0 at 0."""
    return _swoosh(x, _SHIFT_R, _OFFSET_R)


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    if is_exporting():
        constant = shift + offset
        return _exported_swoosh(x - constant, offset) - SWOOSH_SLOPE * constant
    if x.device.type != "cpu":
        return F.softplus(x - shift) - SWOOSH_SLOPE * x - offset
    if not torch.is_grad_enabled() and x.dtype in (torch.float32, torch.float64):
        return tiled_swoosh(x, shift, offset)
    out: Tensor = TiledSwoosh.apply(x, shift, offset)
    return out


def _exported_swoosh(s: Tensor, offset: float) -> Tensor:
    """Return Swoosh of x for s = x - shift - offset, without its constant term, as few operations of a graph."""
    out: Tensor = _ExportedSwoosh.apply(s, offset)
    return out


class _ExportedSwoosh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, offset: float) -> Tensor:
        return torch.maximum(s, (s.clamp(max=MAX_EXPONENT).exp() + math.exp(-offset)).log()) - SWOOSH_SLOPE * s

    @staticmethod
    def symbolic(g: Any, s: Any, offset: float) -> Any:
        """Return nodes for `forward`; ONNX Runtime's Softplus takes twice as long as all of them."""

        def constant(value: float) -> Any:
            return g.op("Constant", value_t=torch.tensor(value))

        exponential = g.op("Exp", g.op("Min", s, constant(MAX_EXPONENT)))
        softplus = g.op("Max", s, g.op("Log", g.op("Add", exponential, constant(math.exp(-offset)))))
        return g.op("Sub", softplus, g.op("Mul", s, constant(SWOOSH_SLOPE)))


def _exported_block(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Compute `swoosh_l_block` in a graph, in pieces of a few frames x (N, T, ..., C) that fit into the cache."""
    constant = _SHIFT_L + _OFFSET_L
    bias1, bias2 = bias1 - constant, bias2 - SWOOSH_SLOPE * constant * weight2.sum(dim=1)
    pieces = [
        F.linear(_exported_swoosh(F.linear(piece, weight1, bias1), _OFFSET_L), weight2, bias2)
        for piece in x.split(_EXPORTED_FRAMES, dim=1)
    ]
    return torch.cat(pieces, dim=1)


def swoosh_l_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    limits: tuple[float, float, float, float] | None,
    grad_scale: float,
) -> Tensor:
    """Apply linear, balancer, SwooshL and linear, in tiles on a CPU.

    Args:
      x: (..., C).
      weight1: (H, C).
      bias1: (H,).
      weight2: (D, H).
      bias2: (D,).
      limits: Limits of the balancer of the hidden channels (`Balancer.sample_limits`); None disables it.
      grad_scale: Gradient scale of the balancer.

    Returns:
      (..., D).
    """
    if is_exporting():
        return _exported_block(x, weight1, bias1, weight2, bias2)
    if not torch.is_grad_enabled() and limits is None and use_cpu_kernels(x) and x.dtype == weight1.dtype:
        rows = tiled_swoosh_block(x.flatten(0, -2), weight1, bias1, weight2, bias2, _SHIFT_L, _OFFSET_L)
        return rows.unflatten(0, x.shape[:-1])
    if not use_cpu_kernels(x) or x.dtype != weight1.dtype:  # dtypes differ under autocast
        hidden = F.linear(x, weight1, bias1)
        if limits is not None:
            hidden = balance(hidden, limits, grad_scale)
        return F.linear(swoosh_l(hidden), weight2, bias2)
    out: Tensor = TiledSwooshBlock.apply(
        x.flatten(0, -2), weight1, bias1, weight2, bias2, _SHIFT_L, _OFFSET_L, limits, grad_scale
    )
    return out.unflatten(0, x.shape[:-1])


def bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """Return x * exp(log_scale) / rms(x - bias) over the last axis, computed in float32 or float64.

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


class _BiasNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
        inverse_rms, scale = (x - bias).square().mean(dim=-1, keepdim=True).rsqrt(), log_scale.exp()
        ctx.save_for_backward(x, bias, inverse_rms, scale)
        return x * (inverse_rms * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, bias, inverse_rms, scale = ctx.saved_tensors
        factor = inverse_rms * scale
        grad_log_scale = (grad * x).sum(dim=-1, keepdim=True) * factor
        grad_centered = (x - bias).mul_(grad_log_scale * inverse_rms.square() / x.size(-1))
        grad_bias = grad_centered.flatten(0, -2).sum(dim=0)
        return torch.mul(grad, factor).sub_(grad_centered), grad_bias, grad_log_scale.sum()
