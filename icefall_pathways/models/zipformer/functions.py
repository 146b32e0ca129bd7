"""Swoosh activations and bias normalisation, with derivatives of their own that keep little for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_SLOPE = 0.08


def swoosh_l(x: Tensor) -> Tensor:
    """log(1 + exp(x - 4)) - 0.08 x - 0.035, for modules that are to be near zero when they do nothing."""
    return _swoosh(x, 4.0, 0.035)


def swoosh_r(x: Tensor) -> Tensor:
    """log(1 + exp(x - 1)) - 0.08 x - 0.313261687, which is 0 at 0."""
    return _swoosh(x, 1.0, 0.313261687)


def _swoosh(x: Tensor, shift: float, offset: float) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Swoosh.apply(x, shift, offset)
    return swoosh_value(x, shift, offset)


def swoosh_value(x: Tensor, shift: float, offset: float) -> Tensor:
    """The value without a graph: one new tensor, and no other memory."""
    shifted = x - shift
    return F.softplus(shifted).add_(x, alpha=-_SLOPE).sub_(offset)


def swoosh_derivative(x: Tensor, shift: float) -> Tensor:
    """sigmoid(x - shift) - 0.08."""
    return (x - shift).sigmoid_().sub_(_SLOPE)


class _Swoosh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: float, offset: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.shift = shift
        return swoosh_value(x, shift, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return swoosh_derivative(x, ctx.shift).mul_(grad), None, None


def bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """x * exp(log_scale) / rms(x - bias) over the last axis.

    Args:
      x: (..., C).
      bias: (C,).
      log_scale: ().
    """
    if torch.is_grad_enabled():
        return _BiasNorm.apply(x, bias.to(x.dtype), log_scale.to(x.dtype))
    return x * (_inverse_rms(x - bias) * log_scale.exp())


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
        along = torch.linalg.vecdot(grad, x).unsqueeze(-1) * factor
        through_length = (x - bias).mul_(along * inverse.square() / x.size(-1))
        grad_bias = through_length.flatten(0, -2).sum(dim=0)
        return torch.mul(grad, factor).sub_(through_length), grad_bias, along.sum()
