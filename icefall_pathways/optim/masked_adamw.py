"""AdamW that touches nothing outside the active sub-network."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.optim.masked_optimizer import MaskedOptimizer, NamedParameters, cleared, look_up
from icefall_pathways.pathways.masks import PathwayMasks

_SATURATED = 1e-8  # beta**n below this no longer shows in float32's 1 - beta**n
_NOT_ZERO = 1e-36  # far below what `eps` lets show; roots of zeros, usual outside a mask, are very slow on CPUs


class MaskedAdamW(MaskedOptimizer):
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
      max_norm: Gradients are scaled down to this norm (`clip_grad_norm`); None leaves them as they are.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_norm: float | None = None,
    ) -> None:
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        groups = [
            {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__([group for group in groups if group["params"]], named, defaults)
        self._max_norm = max_norm
        self._tables: dict[tuple[float, float, torch.device], tuple[Tensor, Tensor]] = {}

    def _step(self) -> None:
        if self._max_norm is not None:
            named = [(name, parameter) for parameter, name in self._names.items()]
            clip_grad_norm(named, self._masks, self._language, self._max_norm)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, self._active_bits(parameter), group)

    def _update(self, parameter: nn.Parameter, grad: Tensor, active: Tensor | None, group: dict[str, Any]) -> None:
        """One step for one parameter.

        Everything is changed by subtracting a difference that is +0.0 outside the mask.
        """
        beta1, beta2 = group["betas"]
        table1, table2 = self._correction_tables(beta1, beta2, parameter.device)
        state = self._state_of(parameter, active)
        exp_avg, exp_avg_sq, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        exp_avg.sub_(cleared(exp_avg - grad, active), alpha=1 - beta1)
        exp_avg_sq.sub_(cleared(torch.addcmul(exp_avg_sq, grad, grad, value=-1), active), alpha=1 - beta2)
        step.sub_(-1 if active is None else active).clamp_(max=len(table1) - 1)
        denominator = exp_avg_sq.add(_NOT_ZERO).sqrt_().mul_(look_up(table2, step)).add_(group["eps"])
        change = (exp_avg * look_up(table1, step)).div_(denominator).add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(cleared(change, active), alpha=group["lr"])

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
