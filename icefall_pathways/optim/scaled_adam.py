"""ScaledAdam that updates the active sub-network only."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from icefall_pathways.optim.buckets import Bucket
from icefall_pathways.optim.masked_optimizer import TINY, MaskedOptimizer, NamedParameters, lookup
from icefall_pathways.pathways.bits import clear_inactive_, select_active, to_bits
from icefall_pathways.pathways.masks import PathwayMasks

# Key of the statistics of parameters without masks; the keys for masked parameters are languages.
_SHARED = "shared"

_PERIOD = 4  # steps between two updates of a tensor's scale
_RMS_LIMITS = (1e-5, 3.0)  # of the scale of a tensor
_MAX_SCALE_CHANGE = 0.1  # relative, per update of the scale
_MAX_SCALAR = 10.0
_NO_CORRECTION = 0.99  # bias corrections closer to 1 than this are omitted, as in icefall

_NUM_NORMS = 100  # number of past norms whose median is the reference of clipping
_FIRST_MEDIANS = (10, 20, 40)  # steps at which the median is over fewer norms; the threshold is then doubled


class ScaledAdam(MaskedOptimizer):
    """ScaledAdam whose step is defined on the entries of one language's mask.

    ScaledAdam (Yao et al., arXiv 2310.11230, section 3.4) is Adam with steps relative to the root mean square (RMS) of
    a tensor. It learns the RMS as an additional parameter, from the sum of weight times gradient over a period of 4
    steps. Without masks it equals icefall's.

    With masks, it behaves as if a masked tensor consisted of its active entries:

    - The RMS, sums and the norm for clipping are computed over the active entries.
    - Statistics per tensor (RMS, gradients of the scale and their moment, position in the period) and the norms of past
      gradients are kept per sub-network: the scale of a language is learned from its own gradients, and clipping
      compares a gradient with those of the same language. An entry that all languages share is rescaled as often as in
      the dense model. Languages with the same mask share their statistics; once a language's mask diverges, it has
      new statistics. Parameters without masks have one set of statistics for all languages.
    - State per entry (second moment, momentum, and the count of updates that corrects the bias of the second moment)
      does not change while the entry is inactive.

    Thus, languages without common entries train independently, and masks that keep all entries have no effect.

    Args:
      named_parameters: The result of `model.named_parameters()`. A missing gradient counts as zero.
      lr: Learning rate, relative to the RMS.
      clipping_scale: Maximum norm of the gradient (weighted by the RMS of each tensor), relative to the median norm of
        the last 100 steps; None disables clipping.
      betas: Decay rates of the momentum and of the second moment.
      eps: Added to roots of second moments.
      scalar_lr_scale: Learning rate factor of the scales and of parameters with one element.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 0.045,
        clipping_scale: float | None = 2.0,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        scalar_lr_scale: float = 0.1,
    ) -> None:
        named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        super().__init__([{"params": [parameter for _, parameter in named]}], named, {"lr": lr})
        self._clipping_scale = clipping_scale
        self._betas = betas
        self._eps = eps
        self._scalar_lr_scale = scalar_lr_scale
        self._correction = _correction_table(betas[1])
        self._tables: dict[torch.device, Tensor] = {}
        # Key of the statistics, by language, and the versions of the masks for which it is valid.
        self._keys: dict[str, str] = {}
        self._mask_versions: list[tuple[Tensor, int]] = []

    def _step(self) -> None:
        buckets = self._buckets_by_group()[0]
        buckets_by_key = {_SHARED: [bucket for bucket in buckets if not bucket.masked]}
        if self._masks is not None:
            buckets_by_key[self._statistics_key(self._masks)] = [bucket for bucket in buckets if bucket.masked]
        groups = [self._statistics_group(key, members) for key, members in buckets_by_key.items() if members]
        clip = self._clipping_factor(groups)
        for group in groups:
            self._update_group(group, clip)
            group.statistics["step"] += 1
        self._min_updates.update(buckets_by_key.keys())

    def _statistics_key(self, masks: PathwayMasks) -> str:
        """Return the key of the active sub-network's statistics: the first language with the same mask."""
        versions = [(code, code._version) for code in masks.codes.values()]
        if len(versions) != len(self._mask_versions) or any(
            code is not old_code or version != old_version
            for (code, version), (old_code, old_version) in zip(versions, self._mask_versions, strict=True)
        ):
            self._mask_versions, self._keys = versions, {}
            self._min_updates.clear()
        if self._language not in self._keys:
            self._keys[self._language] = masks.canonical_language(self._language)
        return self._keys[self._language]

    def _statistics_group(self, key: str, buckets: list[Bucket]) -> "_StatisticsGroup":
        active = [bucket.active_bits(self._masks, self._language) for bucket in buckets]
        gradients = [bucket.gradient(bits) for bucket, bits in zip(buckets, active, strict=True)]
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters]
        statistics: dict[str, Tensor] = cast(dict[str, Any], self.state)[key]
        device = self.param_groups[0]["params"][0].device
        if not statistics:
            statistics["step"] = torch.zeros((), dtype=torch.int64)
            statistics["rms"] = torch.zeros(len(parameters), device=device)
            statistics["scale_grads"] = torch.zeros(_PERIOD, len(parameters), device=device)
            statistics["scale_exp_avg_sq"] = torch.zeros(len(parameters), device=device)
            statistics["norms"] = torch.zeros(_NUM_NORMS, device=device)
            statistics["threshold"] = torch.full((), math.inf, device=device)
        elif len(statistics["rms"]) != len(parameters):
            raise ValueError(
                f"the optimizer's state has statistics of {len(statistics['rms'])} tensors for {key}, but there are "
                f"{len(parameters)}: masks must cover the same parameters throughout a training"
            )
        for name in statistics.keys() - {"step"}:  # "step" stays on the CPU, to avoid synchronization
            statistics[name] = statistics[name].to(device)
        needs_correction = self._min_updates[key] < len(self._correction)
        return _StatisticsGroup(buckets, active, gradients, statistics, needs_correction)

    def _clipping_factor(self, groups: list["_StatisticsGroup"]) -> Tensor | None:
        """Return the clipping factor, 0 for nonfinite gradients; None in the first step or if clipping is disabled."""
        statistics = groups[-1].statistics
        step = int(statistics["step"])
        if self._clipping_scale is None or step == 0:
            return None
        rms = torch.cat([group.statistics["rms"] for group in groups])
        norms = torch.cat([_norms(group, group.gradients) for group in groups])
        norm = torch.linalg.vector_norm(rms * norms)
        statistics["norms"][step % _NUM_NORMS] = norm
        if step in _FIRST_MEDIANS or step % _NUM_NORMS == 0:
            statistics["threshold"].fill_(self._threshold(statistics["norms"], step))
        return (statistics["threshold"] / norm).clamp(max=1.0).nan_to_num(nan=0.0)

    def _threshold(self, norms: Tensor, step: int) -> Tensor:
        """Return the clipping threshold.

        Raises:
          ValueError: At least half of the gradients were not finite.
        """
        assert self._clipping_scale is not None
        is_early = step in _FIRST_MEDIANS
        norms = norms.sort().values[-step if is_early else 0 :]
        median = norms[len(norms) // 4 * 2]
        if not median.isfinite():
            raise ValueError(
                f"the gradient was not finite in half of the last {len(norms)} steps: lower --base-lr, or look for bad "
                "cuts; --use-fp16 0 shows whether half precision is the cause"
            )
        return median * self._clipping_scale * (2 if is_early else 1)

    def _update_group(self, group: "_StatisticsGroup", clip: Tensor | None) -> None:
        statistics, lr = group.statistics, self.param_groups[0]["lr"]
        step = int(statistics["step"])
        position = step % _PERIOD
        if clip is not None:
            for gradient in group.gradients:
                clear_inactive_(gradient.mul_(clip), to_bits(clip > 0, gradient))  # not finite times zero is NaN
        if step == 0 or position == _PERIOD - 1:
            statistics["rms"] = self._rms(group)
        statistics["scale_grads"][position] = _scale_gradients(group)
        growth = self._growth(group, lr) if position == _PERIOD - 1 else None
        step_sizes = lr * statistics["rms"].clamp(min=_RMS_LIMITS[0])
        start = 0
        for i, bucket in enumerate(group.buckets):
            part = slice(start, start + len(bucket.sizes))
            self._update(
                bucket,
                group.gradients[i],
                group.active[i],
                step if group.needs_correction else None,
                step_sizes[part],
                None if growth is None else growth[part],
            )
            start = part.stop

    def _rms(self, group: "_StatisticsGroup") -> Tensor:
        """Return the RMS of every tensor's active entries, or `scalar_lr_scale` for tensors with one element."""
        pairs = zip(group.buckets, group.active, strict=True)
        norms = _norms(group, [clear_inactive_(bucket.weights(), bits) for bucket, bits in pairs])
        rms = norms / group.active_sizes().clamp(min=1).sqrt()
        return rms.masked_fill(group.is_scalar(), self._scalar_lr_scale)

    def _growth(self, group: "_StatisticsGroup", lr: float) -> Tensor:
        """Return the relative change of every tensor's scale, at the end of a period."""
        statistics = group.statistics
        rms, moment = statistics["rms"], statistics["scale_exp_avg_sq"]
        lowest, highest = _RMS_LIMITS
        beta2 = self._betas[1] ** _PERIOD
        moment.lerp_(statistics["scale_grads"].square().mean(dim=0), 1 - beta2)
        correction = math.sqrt(1 - self._betas[1] ** (int(statistics["step"]) + 1))
        growth = statistics["scale_grads"].sum(dim=0).div(moment.sqrt() + self._eps)
        growth = growth.mul_(-lr * self._scalar_lr_scale * correction)
        growth.masked_fill_((rms < lowest) | group.is_scalar(), 0.0)
        return torch.minimum(growth.clamp(-_MAX_SCALE_CHANGE, _MAX_SCALE_CHANGE), (highest - rms) / rms)

    def _update(
        self,
        bucket: Bucket,
        gradient: Tensor,
        active: Tensor | None,
        step: int | None,
        step_sizes: Tensor,
        growth: Tensor | None,
    ) -> None:
        """Update one bucket, by subtracting differences that are +0.0 outside the mask.

        Args:
          bucket: The parameters.
          gradient: Their gradient (n,), zero for inactive entries.
          active: Bits of the active entries; None without masks.
          step: Number of previous steps; None if second moments no longer need a bias correction.
          step_sizes: Step size of each parameter.
          growth: Relative change of each parameter's scale; None except at the end of a period.
        """
        beta1, beta2 = self._betas
        exp_avg_sq, delta = self._bucket_state(bucket, "exp_avg_sq", "delta")
        exp_avg_sq.sub_(
            clear_inactive_(torch.addcmul(exp_avg_sq, gradient, gradient, value=-1), active), alpha=1 - beta2
        )
        denominator = exp_avg_sq.add(TINY).sqrt_()
        if step is not None and active is None:
            denominator.mul_(self._correction[min(step + 1, len(self._correction) - 1)])
        elif step is not None and active is not None:
            denominator.mul_(self._corrections(bucket, active))
        change = bucket.scale_(gradient.div_(denominator.add_(self._eps)), step_sizes)
        if growth is not None:
            change.sub_(bucket.scale_(bucket.weights(), growth))
        difference = torch.sub(delta, change, out=denominator)
        delta.sub_(clear_inactive_(difference, active), alpha=1 - beta1)
        bucket.subtract(delta if active is None else select_active(delta, active, out=denominator))
        for parameter in bucket.parameters:
            if parameter.numel() == 1 and active is None:
                parameter.clamp_(-_MAX_SCALAR, _MAX_SCALAR)

    def _corrections(self, bucket: Bucket, active: Tensor) -> Tensor:
        """Count this update of the active entries; return the bias correction of the root of every second moment."""
        if active.device not in self._tables:
            self._tables[active.device] = torch.tensor(self._correction, device=active.device)
        return lookup(
            self._tables[active.device], self._count_update(bucket, active, max_count=len(self._correction) - 1)
        )


@dataclass
class _StatisticsGroup:
    """Parameters that share statistics, in one step.

    Attributes:
      buckets: The parameters.
      active: Bits of each bucket's active entries.
      gradients: Each bucket's gradient, zero for inactive entries.
      statistics: "rms", "scale_grads" (per step of the period) and "scale_exp_avg_sq" of each parameter; "step", the
        steps so far; "norms" and "threshold" of clipping.
      needs_correction: Whether second moments of active entries may still need a bias correction.
    """

    buckets: list[Bucket]
    active: list[Tensor | None]
    gradients: list[Tensor]
    statistics: dict[str, Tensor]
    needs_correction: bool

    def split(self, flat: list[Tensor]) -> list[Tensor]:
        """Split each bucket's tensor (n,) into one 1-dim tensor per parameter."""
        return [
            piece for bucket, values in zip(self.buckets, flat, strict=True) for piece in values.split(bucket.sizes)
        ]

    def sizes(self) -> Tensor:
        """Return the number of entries of each parameter."""
        return torch.cat([bucket.device_sizes for bucket in self.buckets])

    def is_scalar(self) -> Tensor:
        """Return for each parameter whether it has a single entry, bool."""
        return self.sizes() == 1

    def active_sizes(self) -> Tensor:
        """Return the number of active entries of each parameter."""
        if self.active[0] is None:
            return self.sizes()
        bits = [bits for bits in self.active if bits is not None]
        return -torch.stack([piece.sum() for piece in self.split(bits)])  # all bits set: -1


def _norms(group: _StatisticsGroup, flat: list[Tensor]) -> Tensor:
    """Return the norm of every parameter's part of each bucket's tensor (n,)."""
    return torch.stack([torch.linalg.vector_norm(piece) for piece in group.split(flat)])


def _scale_gradients(group: _StatisticsGroup) -> Tensor:
    """Return the gradient of every parameter's scale: the dot product of its active entries and their gradient."""
    products: list[Tensor] = []
    for bucket, active, gradient in zip(group.buckets, group.active, group.gradients, strict=True):
        weights = [parameter.flatten() for parameter in bucket.parameters]
        if active is not None:  # zero times a weight outside the mask that is not finite is NaN
            bits = active.split(bucket.sizes)
            weights = [select_active(w, b, torch.empty_like(w)) for w, b in zip(weights, bits, strict=True)]
        products += map(torch.dot, weights, gradient.split(bucket.sizes))
    return torch.stack(products)


def _correction_table(beta2: float) -> list[float]:
    """Return the bias corrections of the root of the second moment by update count; the last is for all higher ones."""
    table = [1.0]  # index 0 (no update) is unused, but must be finite
    while (correction := 1 - beta2 ** len(table)) < _NO_CORRECTION:
        table.append(correction**-0.5)
    return [*table, 1.0]
