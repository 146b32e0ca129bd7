"""AdamW that touches nothing outside the active sub-network."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

NamedParameters = Iterable[tuple[str, nn.Parameter]]

_SATURATED = 1e-8  # beta**n below this no longer shows in float32's 1 - beta**n
_NOT_ZERO = 1e-36  # far below what `eps` lets show; roots of zeros, usual outside a mask, are very slow on CPUs

# Integers as wide as the floating-point types, to look at their bits.
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class MaskedAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) whose step is defined on the entries of one language's mask.

    Entries outside the active mask, and their moments, are bit for bit what they were before the step. Each entry's
    bias correction counts the updates of that entry: a global count would make the first steps of an entry that few
    languages use far too large. Without masks this is torch's AdamW.

    Args:
      named_parameters: As `model.named_parameters()` gives them.
      lr: Learning rate.
      betas: Decay rates of the first and second moment.
      eps: Added to the root of the second moment.
      weight_decay: For matrices and kernels; biases, norms and scalars are not decayed.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        groups = [
            {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "betas": betas, "eps": eps})
        self._names = {parameter: name for name, parameter in named}
        self._tables: dict[tuple[float, float, torch.device], tuple[Tensor, Tensor]] = {}
        self._masks: PathwayMasks | None = None
        self._language = ""

    def activate(self, masks: PathwayMasks | None, language: str) -> None:
        """Choose the sub-network that the following steps are for; None is the dense model."""
        self._masks = masks
        self._language = language

    @torch.no_grad()
    def forget(self, name: str, entries: Tensor) -> None:
        """Start anew with some entries of parameter `name`: their moments and their number of updates become zero."""
        parameter = next(p for p, its_name in self._names.items() if its_name == name)
        for value in self.state.get(parameter, {}).values():
            if value.dim() > 0:
                value.masked_fill_(entries, 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the entries of the active sub-network."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, self._active_bits(parameter), group)
        return loss

    def _active_bits(self, parameter: nn.Parameter) -> Tensor | None:
        """All bits set where the active mask keeps an entry, none elsewhere; None where there is no mask."""
        name = self._names[parameter]
        if self._masks is None or name not in self._masks.codes:
            return None
        return self._masks.mask(name, self._language).to(_INTEGERS[parameter.element_size()]).neg_()

    def _update(self, parameter: nn.Parameter, grad: Tensor, active: Tensor | None, group: dict[str, Any]) -> None:
        """One step for one parameter.

        Everything is changed by subtracting a difference that is +0.0 outside the mask, which leaves every number as
        it is, -0.0 included. Clearing bits is several times quicker than `torch.where`, and clears NaN as well.
        """
        beta1, beta2 = group["betas"]
        table1, table2 = self._correction_tables(beta1, beta2, parameter.device)
        state = self._state_of(parameter, active)
        exp_avg, exp_avg_sq, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        exp_avg.sub_(_cleared(exp_avg - grad, active), alpha=1 - beta1)
        exp_avg_sq.sub_(_cleared(torch.addcmul(exp_avg_sq, grad, grad, value=-1), active), alpha=1 - beta2)
        step.sub_(-1 if active is None else active).clamp_(max=len(table1) - 1)
        denominator = exp_avg_sq.add(_NOT_ZERO).sqrt_().mul_(_look_up(table2, step)).add_(group["eps"])
        change = (exp_avg * _look_up(table1, step)).div_(denominator).add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(_cleared(change, active), alpha=group["lr"])

    def _state_of(self, parameter: nn.Parameter, active: Tensor | None) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            # torch's load_state_dict keeps the type of "step", and of nothing else.
            state["step"] = torch.zeros((), dtype=torch.int32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] = state["step"].to(parameter.device)
        if active is not None and state["step"].dim() == 0:
            state["step"] = state["step"].expand(parameter.shape).clone()
        return state

    def _correction_tables(self, beta1: float, beta2: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Factors of the moment and of the root of the second moment, by the number of an entry's updates.

        A look-up is far quicker than a power for every entry. The tables end where the factors have become 1.
        """
        key = (beta1, beta2, device)
        if key not in self._tables:
            longest = max(math.ceil(math.log(_SATURATED) / math.log(beta)) if beta > 0 else 1 for beta in key[:2])
            # From 1 on: an entry never updated has no correction, but its change must not be computed from infinity.
            counts = torch.arange(longest + 1, dtype=torch.float64).clamp_(min=1)
            table1, table2 = 1 / (1 - beta1**counts), 1 / (1 - beta2**counts).sqrt()
            self._tables[key] = (table1.float().to(device), table2.float().to(device))
        return self._tables[key]


def _look_up(table: Tensor, step: Tensor) -> Tensor:
    return table.index_select(0, step.flatten()).view(step.shape)


def _cleared(values: Tensor, active: Tensor | None) -> Tensor:
    """`values`, changed in place to +0.0 where no bit of `active` is set."""
    if active is not None:
        values.view(active.dtype).bitwise_and_(active)
    return values


@torch.no_grad()
def clip_grad_norm(
    named_parameters: NamedParameters, masks: PathwayMasks | None, language: str, max_norm: float
) -> Tensor:
    """Scale the gradient of the active sub-network down to `max_norm`; gradients outside it become zero.

    Nothing waits for the device. A non-finite norm leaves the gradients as they are; it is the caller's to act on.

    Returns:
      The norm before scaling, a 0-dim tensor.

    Raises:
      ValueError: No parameter has a gradient.
    """
    gradients = []
    for name, parameter in named_parameters:
        if parameter.grad is None:
            continue
        if masks is not None and name in masks.codes:
            parameter.grad.mul_(masks.mask(name, language).to(parameter.grad.dtype))
        gradients.append(parameter.grad)
    if not gradients:
        raise ValueError("no parameter has a gradient: clip after backward() and before zero_grad()")
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    scale = torch.where(torch.isfinite(norm), scale, torch.ones_like(scale))
    for gradient in gradients:
        gradient.mul_(scale)
    return norm
