"""Training regularizers: schedules, dropout per sequence, and gradient modifiers.

Balancers, whiteners and limits are the identity in the forward pass and modify the gradient in the backward pass, so
that activations and parameters stay within ranges (Yao et al., "Zipformer", arXiv 2310.11230; with icefall's settings).
All randomness comes from torch's global generator. No regularizer has parameters or buffers.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FLOOR = 1e-20


class Schedule:
    """A piecewise linear function of the position in training, constant before the first and after the last point.

    Args:
      points: (position, value), with increasing positions.

    Raises:
      ValueError: There is no point, or positions do not increase.
    """

    def __init__(self, *points: tuple[float, float]) -> None:
        if not points or any(a[0] >= b[0] for a, b in pairwise(points)):
            raise ValueError(f"a schedule has the points {points}: expected at least one, with increasing positions")
        self.points = points

    def __call__(self, position: float) -> float:
        """Return the value at `position`."""
        if position <= self.points[0][0]:
            return self.points[0][1]
        for (x0, y0), (x1, y1) in pairwise(self.points):
            if position <= x1:
                return y0 + (y1 - y0) * (position - x0) / (x1 - x0)
        return self.points[-1][1]

    def __repr__(self) -> str:
        return f"Schedule{self.points}"


ScheduledFloat = float | Schedule


class Scheduled(nn.Module):
    """Base class of modules with scheduled hyperparameters; `set_position` sets the position in training."""

    position: float = 0.0

    def value_at(self, value: ScheduledFloat) -> float:
        """Return the current value."""
        return value(self.position) if isinstance(value, Schedule) else value

    def rate(self, value: ScheduledFloat) -> float:
        """Return the current value in training, and 0 in eval mode."""
        return self.value_at(value) if self.training else 0.0

    def sample(self, probability: ScheduledFloat) -> bool:
        """Sample an event with this probability; return False in eval mode."""
        rate = self.rate(probability)
        return rate > 0.0 and bool(torch.rand(()) < rate)


def set_position(model: nn.Module, position: float) -> None:
    """Set the position in training in all scheduled modules of `model`.

    Args:
      model: Any module.
      position: Number of batches so far, normalized to batches of 600 s of audio.
    """
    for module in model.modules():
        if isinstance(module, Scheduled):
            module.position = position


def regularizer_state(model: nn.Module) -> dict[str, float]:
    """Return the regularizers' state by module name, with which a resumed run equals an uninterrupted one."""
    return {name: module.probability for name, module in model.named_modules() if isinstance(module, Whiten)}


def load_regularizer_state(model: nn.Module, state: dict[str, float]) -> None:
    """Restore the result of `regularizer_state`."""
    for name, probability in state.items():
        module = model.get_submodule(name)
        assert isinstance(module, Whiten)
        module.probability, module.was_active = probability, None


def pending_whiteners(model: nn.Module) -> "dict[Whiten, Tensor]":
    """Return `was_active` of every whitener whose probability has not been updated since."""
    return {m: m.was_active for m in model.modules() if isinstance(m, Whiten) and m.was_active is not None}


def drop_sequences(x: Tensor, rate: float) -> Tensor:
    """Set each sequence of (N, ...) to zero with probability `rate`, without scaling the others."""
    return x * keep_sequences(x, rate) if rate > 0.0 else x


def keep_sequences(x: Tensor, rate: float) -> Tensor:
    """Return a random mask (N, 1, ..., 1) for x (N, ...): 0 with probability `rate` for each sequence, else 1."""
    shape = (x.size(0), *(1,) * (x.dim() - 1))
    return (torch.rand(shape, device=x.device) >= rate).to(x.dtype)


def drop_channels(x: Tensor, rate: float) -> Tensor:
    """Apply dropout to (N, T, C) with the same mask for all frames of a sequence."""
    if rate == 0.0:
        return x
    return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), rate)


class Balancer(Scheduled):
    """Keep the mean and the root mean square of each channel of the input (..., C) within limits.

    The mean, in units of the standard deviation, is limited to the means of Gaussians that are positive with
    probability `min_positive` to `max_positive`, and the root mean square to the values of zero-mean Gaussians with a
    mean absolute value of `min_abs` to `max_abs`. Outside the limits, gradients that increase the violation are
    slightly decreased, and gradients that reduce it slightly increased.

    Args:
      min_positive: Lower limit of the probability of a positive value; 0 disables it.
      max_positive: Upper limit of that probability; 1 disables it.
      min_abs: Lower limit of the mean absolute value.
      max_abs: Upper limit of the mean absolute value.
      probability: Probability of being active in a call.
      grad_scale: Relative change of the gradient.
    """

    def __init__(
        self,
        min_positive: ScheduledFloat,
        max_positive: ScheduledFloat,
        min_abs: ScheduledFloat,
        max_abs: ScheduledFloat,
        probability: ScheduledFloat | None = None,
        grad_scale: float = 0.04,
    ) -> None:
        super().__init__()
        self.positive = (min_positive, max_positive)
        self.abs = (min_abs, max_abs)
        self.probability = Schedule((0, 0.5), (8000, 0.125)) if probability is None else probability
        self.grad_scale = grad_scale

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, with a modified gradient."""
        limits = self.sample_limits(x)
        return x if limits is None else balance(x, limits, self.grad_scale)

    def sample_limits(self, x: Tensor) -> tuple[float, float, float, float] | None:
        """Sample whether the balancer is active on `x`.

        Returns:
          The limits (min_mean, max_mean, min_rms, max_rms), with means relative to the standard deviation; None if the
          balancer is not active.
        """
        if not (x.requires_grad and self.sample(self.probability)):
            return None
        min_mean, max_mean = (_mean_limit(self.value_at(probability)) for probability in self.positive)
        min_rms, max_rms = (math.sqrt(math.pi / 2) * self.value_at(limit) for limit in self.abs)
        return min_mean, max_mean, min_rms, max_rms


def _mean_limit(probability: float) -> float:
    """Approximate the mean of a Gaussian of standard deviation 1 that is positive with this probability."""
    y = 2.0 * probability - 1.0
    return 0.8139535143 * 0.5 * (math.log(1.0 + y + 1e-10) - math.log(1.0 - y + 1e-10))


def balancing_coefficients(
    mean: Tensor, mean_square: Tensor, limits: tuple[float, float, float, float], grad_scale: float
) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a balancer, which replaces a gradient g of x by g + |g| (a + b x).

    Its auxiliary loss depends only on each channel's mean m and mean square s, so its derivative with respect to x is
    A + B x, whose mean square is A^2 + 2 A B m + B^2 s.

    Args:
      mean: Mean of each channel (C,).
      mean_square: Mean square of each channel (C,).
      limits: See `Balancer.sample_limits`.
      grad_scale: Relative change of the gradient.

    Returns:
      a and b (C,), in the dtype of `mean`.
    """
    min_mean, max_mean, min_rms, max_rms = limits
    m, s = mean.double(), mean_square.double()
    variance = s - m * m
    deviation = variance.clamp(min=_FLOOR).sqrt()
    rms = s.clamp(min=_FLOOR).sqrt()
    ratio = m / deviation
    mean_violation = (ratio > max_mean).double() - (ratio < min_mean).double()
    rms_violation = (rms > max_rms).double() - (rms < min_rms).double()
    # A channel that is constant or zero is at the floor, where the deviation or the RMS has no gradient.
    is_varying, is_nonzero = (variance > _FLOOR).double(), (s > _FLOOR).double()
    a = mean_violation * (1.0 / deviation + is_varying * m * m / deviation**3)
    b = is_nonzero * rms_violation / rms**2 - is_varying * mean_violation * m / deviation**3
    norm = (a**2 + 2 * a * b * m + b**2 * s).clamp(min=0).sqrt().clamp(min=_FLOOR)
    return (grad_scale * a / norm).to(mean.dtype), (grad_scale * b / norm).to(mean.dtype)


def balance(x: Tensor, limits: tuple[float, float, float, float], grad_scale: float) -> Tensor:
    """Return `x` (..., C), with a balanced gradient; see `Balancer.sample_limits` and `balancing_coefficients`."""
    balanced: Tensor = _Balance.apply(x, limits, grad_scale)
    return balanced


class _Balance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limits: tuple[float, float, float, float], grad_scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits, ctx.grad_scale = limits, grad_scale
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x = ctx.saved_tensors[0].float()
        axes = tuple(range(x.dim() - 1))
        a, b = balancing_coefficients(x.mean(axes), x.square().mean(axes), ctx.limits, ctx.grad_scale)
        balanced = torch.addcmul(a, x, b).mul_(grad.abs()).add_(grad)
        return balanced.to(grad.dtype), None, None


class Whiten(Scheduled):
    """Keep the covariance of the input (..., C) from being dominated by few directions.

    The metric is the mean square of the covariance's eigenvalues over the square of their mean, which is 1 if all are
    equal. Above the limit, a penalty on the metric is added to the gradient, and the metric is computed more often; see
    `update_probability`.

    Args:
      num_groups: Groups of channels, with one covariance per group.
      limit: Upper limit of the metric.
      grad_scale: Norm of the penalty's gradient, relative to the norm of the gradient.

    Attributes:
      probability: Probability of computing the metric in a call.
      was_active: Whether the metric was above the limit in the last call that computed it, a 0-dim bool on the device
        of the gradient; None after `update_probability`.
    """

    _HIGH_PROBABILITY, _LOW_PROBABILITY = 0.25, 0.025

    def __init__(self, num_groups: int, limit: ScheduledFloat, grad_scale: float = 0.01) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.limit = limit
        self.grad_scale = grad_scale
        self.probability = self._HIGH_PROBABILITY
        self.was_active: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, with a modified gradient."""
        if not (x.requires_grad and self.sample(self.probability)):
            return x
        whitened: Tensor = _Whitening.apply(x, self)
        return whitened

    def update_probability(self, was_active: bool) -> None:
        """Set the probability from the last call; not in `modify_gradient`, to avoid synchronizing with the device."""
        self.probability = self._HIGH_PROBABILITY if was_active else self._LOW_PROBABILITY
        self.was_active = None

    def modify_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient of the input `x` (..., C), given the gradient of the output."""
        groups = x.float().reshape(-1, self.num_groups, x.size(-1) // self.num_groups).transpose(0, 1)
        groups = groups - groups.mean(dim=1, keepdim=True)
        covariance = torch.matmul(groups.transpose(1, 2), groups)
        mean_diagonal = covariance.diagonal(dim1=1, dim2=2).mean()
        metric = covariance.square().sum() / x.size(-1) / (mean_diagonal.square() + _FLOOR)
        self.was_active = (metric < self.value_at(self.limit)).logical_not()
        # The derivative of the metric with respect to x, up to a factor, which the division by its norm removes.
        penalty = torch.matmul(groups, covariance).sub_(groups.mul_(metric * mean_diagonal))
        penalty = penalty.transpose(0, 1).reshape(x.shape)
        scale = self.grad_scale * grad.float().norm() / (penalty.norm() + _FLOOR)
        return torch.where(self.was_active, grad + (penalty * scale).to(grad.dtype), grad)


class _Whitening(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Whiten) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.module.modify_gradient(ctx.saved_tensors[0], grad), None


def limit_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """Return `x`; flip the sign of gradients that would move an entry further outside [low, high]."""
    limited: Tensor = _Limit.apply(x, low, high)
    return limited


class _Limit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((grad > 0) & (x < ctx.low)) | ((grad < 0) & (x > ctx.high))
        return torch.where(outward, -grad, grad), None, None


def penalize_large_scores(x: Tensor, limit: float, penalty: float) -> Tensor:
    """Return `x`; add `penalty` times the sign to the gradient of entries above `limit` in absolute value."""
    penalized: Tensor = _Penalize.apply(x, limit, penalty)
    return penalized


class _Penalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float, penalty: float) -> Tensor:
        ctx.save_for_backward((x > limit).to(torch.int8) - (x < -limit).to(torch.int8))
        ctx.penalty = penalty
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (direction,) = ctx.saved_tensors
        return torch.add(grad, direction.to(grad.dtype), alpha=ctx.penalty), None, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return `x`, with its gradient multiplied by `scale`."""
    scaled: Tensor = _ScaleGradient.apply(x, scale)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
