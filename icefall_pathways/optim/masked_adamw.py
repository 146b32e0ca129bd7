"""AdamW that updates the active sub-network only."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icefall_pathways.optim.buckets import Bucket
from icefall_pathways.optim.masked_optimizer import TINY, MaskedOptimizer, NamedParameters, lookup
from icefall_pathways.pathways.bits import clear_inactive_

_SATURATED = 1e-8  # below this, beta**n has no effect on 1 - beta**n in float32


class MaskedAdamW(MaskedOptimizer):
    """AdamW (decoupled weight decay) whose step is defined on the entries of one language's mask.

    A step leaves the entries outside the active mask and their moments bitwise unchanged. The bias correction of an
    entry counts the updates of that entry: with a global count, the first steps of an entry that few languages use
    would be far too large. Without masks, this is torch's AdamW.

    Args:
      named_parameters: The result of `model.named_parameters()`.
      lr: Learning rate.
      betas: Decay rates of the first and second moment.
      eps: Added to the root of the second moment.
      weight_decay: Weight decay of matrices and kernels; biases, norms and scalars are not decayed.
      max_norm: Maximum norm of the active entries' gradient (`clip_gradients`); None disables clipping.
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
        work = []
        for group, buckets in zip(self.param_groups, self._buckets_by_group(), strict=True):
            for bucket in buckets:
                if any(bucket.has_gradient()):
                    active = self._active_bits(bucket)
                    work.append((group, bucket, active, bucket.gradient(active)))
        if self._max_norm is not None:
            clip_gradients([gradient for _, _, _, gradient in work], self._max_norm)
        for group, bucket, active, gradient in work:
            self._update(bucket, gradient, active, group)

    def _active_bits(self, bucket: Bucket) -> Tensor | None:
        active = bucket.active_bits(self._masks, self._language)
        if all(bucket.has_gradient()):
            return active
        present = bucket.gradient_bits()
        return present if active is None else active.bitwise_and_(present)

    def _update(self, bucket: Bucket, gradient: Tensor, active: Tensor | None, group: dict[str, Any]) -> None:
        """Update one bucket, by subtracting differences that are +0.0 outside the mask."""
        beta1, beta2 = group["betas"]
        table1, table2 = self._correction_tables(beta1, beta2, gradient.device)
        exp_avg, exp_avg_sq = self._bucket_state(bucket, "exp_avg", "exp_avg_sq")
        counts = self._count_update(bucket, active, max_count=len(table1) - 1)
        exp_avg.sub_(clear_inactive_(exp_avg - gradient, active), alpha=1 - beta1)
        exp_avg_sq.sub_(
            clear_inactive_(torch.addcmul(exp_avg_sq, gradient, gradient, value=-1), active), alpha=1 - beta2
        )
        denominator = exp_avg_sq.add(TINY).sqrt_().mul_(lookup(table2, counts)).add_(group["eps"])
        change = (exp_avg * lookup(table1, counts)).div_(denominator)
        change.add_(bucket.weights(), alpha=group["weight_decay"])
        bucket.subtract(clear_inactive_(change, active), alpha=group["lr"])

    def _correction_tables(self, beta1: float, beta2: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the bias corrections of the first moment and of the root of the second moment, by update count.

        A table lookup is far faster than a power per entry. The tables end where the corrections are 1.
        """
        key = (beta1, beta2, device)
        if key not in self._tables:
            longest = max(math.ceil(math.log(_SATURATED) / math.log(beta)) if beta > 0 else 1 for beta in key[:2])
            # Index 0 (no update) is unused, but must be finite: it repeats index 1.
            counts = torch.arange(longest + 1, dtype=torch.float64).clamp_(min=1)
            table1, table2 = 1 / (1 - beta1**counts), 1 / (1 - beta2**counts).sqrt()
            self._tables[key] = (table1.float().to(device), table2.float().to(device))
        return self._tables[key]


@torch.no_grad()
def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place so that their total norm is at most `max_norm`, without synchronizing with the device.

    If the norm is not finite, the gradients are not changed, and the caller has to handle this.

    Returns:
      The norm before scaling, a 0-dim tensor.

    Raises:
      ValueError: There is no gradient.
    """
    if not gradients:
        raise ValueError("no parameter has a gradient: clip after backward() and before zero_grad()")
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    scale = torch.where(torch.isfinite(norm), scale, torch.ones_like(scale))
    for gradient in gradients:
        gradient.mul_(scale)
    return norm
