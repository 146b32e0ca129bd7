"""AdamW that touches nothing outside the active sub-network."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

NamedParameters = Iterable[tuple[str, nn.Parameter]]

_SATURATED = 1e-8  # beta**n below this no longer shows in float32's 1 - beta**n


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
        betas: tuple[float, float] = (0.9, 0.999),
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
        self._corrections: dict[tuple[float, torch.device], Tensor] = {}
        self._masks: PathwayMasks | None = None
        self._language = ""

    def activate(self, masks: PathwayMasks | None, language: str) -> None:
        """Choose the sub-network that the following steps are for; None is the dense model."""
        self._masks = masks
        self._language = language

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
                    self._update(parameter, parameter.grad, self._mask_of(parameter), group)
        return loss

    def _mask_of(self, parameter: nn.Parameter) -> Tensor | None:
        name = self._names[parameter]
        if self._masks is None or name not in self._masks.codes:
            return None
        return self._masks.mask(name, self._language)

    def _update(self, parameter: nn.Parameter, grad: Tensor, mask: Tensor | None, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state = self._state_of(parameter, mask)
        exp_avg = torch.lerp(state["exp_avg"], grad, 1 - beta1)
        exp_avg_sq = (state["exp_avg_sq"] * beta2).addcmul_(grad, grad, value=1 - beta2)
        step = (state["step"] + (1 if mask is None else mask)).clamp_(max=self._saturation(beta1, beta2))
        denominator = exp_avg_sq.sqrt().div_(self._correction(beta2, step).sqrt()).add_(group["eps"])
        change = (exp_avg / self._correction(beta1, step)).div_(denominator)
        updated = (parameter * (1 - group["lr"] * group["weight_decay"])).sub_(change, alpha=group["lr"])
        for old, new in ((state["exp_avg"], exp_avg), (state["exp_avg_sq"], exp_avg_sq), (parameter, updated)):
            old.copy_(new if mask is None else torch.where(mask, new, old))
        state["step"].copy_(step)

    def _state_of(self, parameter: nn.Parameter, mask: Tensor | None) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            # torch's load_state_dict keeps the type of "step", and of nothing else.
            state["step"] = torch.zeros((), dtype=torch.int32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] = state["step"].to(parameter.device)
        if mask is not None and state["step"].dim() == 0:
            state["step"] = state["step"].expand(parameter.shape).clone()
        return state

    @staticmethod
    def _saturation(*betas: float) -> int:
        return max(math.ceil(math.log(_SATURATED) / math.log(beta)) if beta > 0 else 1 for beta in betas)

    def _correction(self, beta: float, step: Tensor) -> Tensor:
        """1 - beta**step for every entry, looked up in a table: far quicker than a power for every entry."""
        table = self._corrections.get((beta, step.device))
        if table is None:
            counts = torch.arange(self._saturation(*self.defaults["betas"], beta) + 1, dtype=torch.float64)
            table = (1 - torch.pow(beta, counts)).float().to(step.device)
            table[0] = 1.0  # an entry never updated: its change is computed and thrown away, and must not be NaN
            self._corrections[(beta, step.device)] = table
        return table.index_select(0, step.flatten()).view(step.shape)


@torch.no_grad()
def clip_grad_norm(
    named_parameters: NamedParameters, masks: PathwayMasks | None, language: str, max_norm: float
) -> Tensor:
    """Scale the gradient of the active sub-network down to `max_norm`; gradients outside it become zero.

    Nothing waits for the device. A non-finite norm leaves the gradients as they are; it is the caller's to act on.

    Returns:
      The norm before scaling, a 0-dim tensor.
    """
    gradients = []
    for name, parameter in named_parameters:
        if parameter.grad is None:
            continue
        if masks is not None and name in masks.codes:
            parameter.grad.mul_(masks.mask(name, language))
        gradients.append(parameter.grad)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    scale = torch.where(torch.isfinite(norm), scale, torch.ones_like(scale))
    for gradient in gradients:
        gradient.mul_(scale)
    return norm
