"""What acts in training alone: schedules, dropout by sequences, and edits of gradients.

Balancers, whiteners and limits leave the values as they are and change the gradient that passes, so that activations
and parameters stay within ranges (Yao et al., "Zipformer", arXiv 2310.11230, and the public recipe's settings). All
randomness comes from torch's global generator. Nothing here has parameters or buffers.
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
    """A number that depends on the position in training: linear between points and constant outside them.

    Args:
      points: (position, value), positions rising.
    """

    def __init__(self, *points: tuple[float, float]) -> None:
        if not points or any(a[0] >= b[0] for a, b in pairwise(points)):
            raise ValueError(f"a schedule has the points {points}: expected at least one, with rising positions")
        self.points = points

    def __call__(self, position: float) -> float:
        """The value at `position`."""
        if position <= self.points[0][0]:
            return self.points[0][1]
        for (x0, y0), (x1, y1) in pairwise(self.points):
            if position <= x1:
                return y0 + (y1 - y0) * (position - x0) / (x1 - x0)
        return self.points[-1][1]

    def __repr__(self) -> str:
        return f"Schedule{self.points}"


Scheduling = float | Schedule


class Scheduled(nn.Module):
    """A module with numbers that depend on the position in training, which `set_position` tells it."""

    position: float = 0.0

    def value_at(self, value: Scheduling) -> float:
        """What `value` is now."""
        return value(self.position) if isinstance(value, Schedule) else value

    def rate(self, value: Scheduling) -> float:
        """What `value` is now, in training; else 0."""
        return self.value_at(value) if self.training else 0.0

    def sample(self, probability: Scheduling) -> bool:
        """Whether something sample in this call; never outside training."""
        rate = self.rate(probability)
        return rate > 0.0 and bool(torch.rand(()) < rate)


def set_position(model: nn.Module, position: float) -> None:
    """Tell all scheduled parts of `model` how far training has come.

    Args:
      model: Any module.
      position: Batches so far, counted in batches of 600 s of audio.
    """
    for module in model.modules():
        if isinstance(module, Scheduled):
            module.position = position


def regularizer_state(model: nn.Module) -> dict[str, float]:
    """What regularizers have learnt of `model` beside its weights: plain data, by module names.

    A run that is resumed with it goes on exactly as it would have.
    """
    return {name: module.probability for name, module in model.named_modules() if isinstance(module, Whiten)}


def load_regularizer_state(model: nn.Module, state: dict[str, float]) -> None:
    """Take over what `regularizer_state` gave."""
    for name, probability in state.items():
        module = model.get_submodule(name)
        assert isinstance(module, Whiten)
        module.probability, module.was_active = probability, None


def pending_whiteners(model: nn.Module) -> "dict[Whiten, Tensor]":
    """What those have found that have not learnt from it yet: their `was_active`."""
    return {m: m.was_active for m in model.modules() if isinstance(m, Whiten) and m.was_active is not None}


def drop_sequences(x: Tensor, rate: float) -> Tensor:
    """Set a share of the sequences of (N, ...) to zero; the others are not scaled up."""
    return x * keep_sequences(x, rate) if rate > 0.0 else x


def keep_sequences(x: Tensor, rate: float) -> Tensor:
    """Ones, and zeros for a share of the sequences: (N, 1, ..., 1) for x of (N, ...)."""
    shape = (x.size(0), *(1,) * (x.dim() - 1))
    return (torch.rand(shape, device=x.device) >= rate).to(x.dtype)


def drop_channels(x: Tensor, rate: float) -> Tensor:
    """Dropout of (N, T, C) whose mask is the same for all frames of a sequence."""
    if rate == 0.0:
        return x
    return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), rate)


class Balancer(Scheduled):
    """Keeps the channels of its input (..., C) within a range of means and sizes.

    The limits of a channel's mean, in units of its deviation, are those of a Gaussian that is positive in a share of
    `min_positive` to `max_positive` of the cases; those of its root mean square are what a Gaussian of mean absolute
    value `min_abs` to `max_abs` has. Outside them, gradients that would make it worse are made a little smaller, and
    those that make it better a little larger.

    Args:
      min_positive: Lower limit, 0 for none.
      max_positive: Upper limit, 1 for none.
      min_abs: Lower limit.
      max_abs: Upper limit.
      probability: Of acting in a call.
      grad_scale: How much gradients change.
    """

    def __init__(
        self,
        min_positive: Scheduling,
        max_positive: Scheduling,
        min_abs: Scheduling,
        max_abs: Scheduling,
        probability: Scheduling | None = None,
        grad_scale: float = 0.04,
    ) -> None:
        super().__init__()
        self.positive = (min_positive, max_positive)
        self.abs = (min_abs, max_abs)
        self.probability = Schedule((0, 0.5), (8000, 0.125)) if probability is None else probability
        self.grad_scale = grad_scale

    def forward(self, x: Tensor) -> Tensor:
        """`x`, with an edit of its gradient."""
        limits = self.draw(x)
        return x if limits is None else balance(x, limits, self.grad_scale)

    def draw(self, x: Tensor) -> tuple[float, float, float, float] | None:
        """The limits of mean / deviation and of root mean square if it acts on `x` in this call, else None."""
        if not (x.requires_grad and self.sample(self.probability)):
            return None
        low, high = (_mean_limit(self.value_at(share)) for share in self.positive)
        small, large = (math.sqrt(math.pi / 2) * self.value_at(size) for size in self.abs)
        return low, high, small, large


def _mean_limit(share: float) -> float:
    """About the mean of a Gaussian of deviation 1 that is positive in this share of the cases."""
    y = 2.0 * share - 1.0
    return 0.8139535143 * 0.5 * (math.log(1.0 + y + 1e-10) - math.log(1.0 - y + 1e-10))


def balancing_coefficients(
    mean: Tensor, mean_square: Tensor, limits: tuple[float, float, float, float], grad_scale: float
) -> tuple[Tensor, Tensor]:
    """The balancer's edit: a gradient g of x becomes g + |g| (a + b x).

    Its auxiliary loss is a function of each channel's mean m and mean square s alone, so its derivative by x is
    A + B x, and everything is known from m and s: the mean square of that is A^2 + 2 A B m + B^2 s.

    Args:
      mean: Of each channel (C,).
      mean_square: Of each channel (C,).
      limits: See `Balancer.draw`.
      grad_scale: Size of the edit.

    Returns:
      a and b (C,), in the type of `mean`.
    """
    low, high, small, large = limits
    m, s = mean.double(), mean_square.double()
    variance = s - m * m
    deviation = variance.clamp(min=_FLOOR).sqrt()
    size = s.clamp(min=_FLOOR).sqrt()
    ratio = m / deviation
    too_far = (ratio > high).double() - (ratio < low).double()
    too_large = (size > large).double() - (size < small).double()
    # At a floor, a channel that is the same everywhere, or zero, the deviation or the size is a constant.
    varies, there = (variance > _FLOOR).double(), (s > _FLOOR).double()
    by_mean = too_far * (1.0 / deviation + varies * m * m / deviation**3)
    by_x = there * too_large / size**2 - varies * too_far * m / deviation**3
    length = (by_mean**2 + 2 * by_mean * by_x * m + by_x**2 * s).clamp(min=0).sqrt().clamp(min=_FLOOR)
    return (grad_scale * by_mean / length).to(mean.dtype), (grad_scale * by_x / length).to(mean.dtype)


def balance(x: Tensor, limits: tuple[float, float, float, float], grad_scale: float) -> Tensor:
    """`x` (..., C), with a balancer's edit of its gradient; see `Balancer.draw` and `balancing_coefficients`."""
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
        edit = torch.addcmul(a, x, b).mul_(grad.abs()).add_(grad)
        return edit.to(grad.dtype), None, None


class Whiten(Scheduled):
    """Keeps the covariance of its input (..., C) from being dominated by few directions.

    The metric is the mean square of the covariance's eigenvalues over the square of their mean, 1 where all are equal.
    Above the limit, gradients are pushed to lower it, and the module acts more often; else less: as soon as it is told
    what it has found, see `update_probability`.

    Args:
      num_groups: Groups of channels with a covariance each.
      limit: Of the metric.
      grad_scale: Size of the push, as a share of the gradient's norm.

    Attributes:
      probability: Of acting in a call.
      was_active: Whether the last gradient was pushed, a 0-dim bool on the gradient's device; None once that is learnt.
    """

    _OFTEN, _SELDOM = 0.25, 0.025

    def __init__(self, num_groups: int, limit: Scheduling, grad_scale: float = 0.01) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.limit = limit
        self.grad_scale = grad_scale
        self.probability = self._OFTEN
        self.was_active: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x`, with an edit of its gradient."""
        if not (x.requires_grad and self.sample(self.probability)):
            return x
        whitened: Tensor = _Whitening.apply(x, self)
        return whitened

    def update_probability(self, was_active: bool) -> None:
        """Act often or seldom from now on. Apart from `edit`, where reading `was_active` would wait for the device."""
        self.probability = self._OFTEN if was_active else self._SELDOM
        self.was_active = None

    def edit(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient that leaves for `grad` arriving at x, both (..., C)."""
        groups = x.float().reshape(-1, self.num_groups, x.size(-1) // self.num_groups).transpose(0, 1)
        groups = groups - groups.mean(dim=1, keepdim=True)
        covariance = torch.matmul(groups.transpose(1, 2), groups)
        mean_diagonal = covariance.diagonal(dim1=1, dim2=2).mean()
        metric = covariance.square().sum() / x.size(-1) / (mean_diagonal.square() + _FLOOR)
        self.was_active = (metric < self.value_at(self.limit)).logical_not()
        # The derivative by x, up to a factor, which its norm divides out.
        push = torch.matmul(groups, covariance).sub_(groups.mul_(metric * mean_diagonal))
        push = push.transpose(0, 1).reshape(x.shape)
        size = self.grad_scale * grad.float().norm() / (push.norm() + _FLOOR)
        return torch.where(self.was_active, grad + (push * size).to(grad.dtype), grad)


class _Whitening(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Whiten) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.module.edit(ctx.saved_tensors[0], grad), None


def limit_gradient(x: Tensor, low: float, high: float) -> Tensor:
    """`x`; gradients that would push an entry further out of [low, high] change their sign."""
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
        outwards = ((grad > 0) & (x < ctx.low)) | ((grad < 0) & (x > ctx.high))
        return torch.where(outwards, -grad, grad), None, None


def penalize_large_scores(x: Tensor, limit: float, penalty: float) -> Tensor:
    """`x`; the gradient of entries beyond `limit` in absolute value is raised by `penalty`, in their direction."""
    penalised: Tensor = _Penalise.apply(x, limit, penalty)
    return penalised


class _Penalise(torch.autograd.Function):
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
    """`x`, with its gradient multiplied by `scale`."""
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
