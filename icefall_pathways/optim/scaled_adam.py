"""ScaledAdam that touches nothing outside the active sub-network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from icefall_pathways.optim.buckets import Bucket, bits_of, chosen, cleared
from icefall_pathways.optim.masked_optimizer import MaskedOptimizer, NamedParameters, look_up
from icefall_pathways.pathways.masks import PathwayMasks

# Where the state has the statistics of parameters without masks; those of masked ones stand under a language.
_SHARED = "shared"

_PERIOD = 4  # steps between two changes of a tensor's scale
_RMS_LIMITS = (1e-5, 3.0)  # within which the scale of a tensor is learnt
_MAX_SCALE_CHANGE = 0.1  # relative, at one change of the scale
_MAX_SCALAR = 10.0
_NO_CORRECTION = 0.99  # bias corrections closer to 1 than this are left out, as in icefall

_RING = 100  # norms whose median the clipping goes by
_FIRST_MEDIANS = (10, 20, 40)  # steps at which it is taken before the ring is full; clipping is twice as lenient

_NOT_ZERO = 1e-36  # far below what `eps` lets show; roots of zeros, usual outside a mask, are very slow on CPUs


class ScaledAdam(MaskedOptimizer):
    """ScaledAdam whose step is defined on the entries of one language's mask.

    ScaledAdam (Yao et al., arXiv 2310.11230, section 3.4) is Adam, whose step is relative to the root mean square (RMS)
    of a tensor and which learns that RMS, as one more parameter, from the sum of weight times gradient over a period of
    4 steps. Without masks it is icefall's.

    With masks, everything is as if the active entries were all that a masked tensor has:

    - RMS, sums, and the norm that clipping goes by are taken over the active entries.
    - What is one number per tensor (its RMS, its scale's gradients and their moment, the place in the period) and the
      norms of past gradients are kept for each sub-network on its own: a language's scale is learnt from its own
      gradients alone and its gradient is compared with its own past. An entry that all languages share is rescaled as
      often as in the dense model. Languages with one and the same mask have one set of these numbers; a language whose
      mask departs from theirs begins anew. Parameters without masks belong to all languages and have one set.
    - What is one number per entry (second moment, momentum, and the count of updates that corrects the moment's bias)
      stays, like the entry, as it is while the entry is not active.

    So languages that share no entry train as if each were alone, and masks that keep everything change nothing.

    Args:
      named_parameters: As `model.named_parameters()` gives them. One without a gradient is taken to have a zero one.
      lr: Learning rate, relative to the RMS.
      clipping_scale: The gradient is scaled down to this many times the median norm of the last 100 steps (with each
        tensor's part in proportion to its RMS); None never does.
      betas: Decay rates of the momentum and of the second moment.
      eps: Added to roots of second moments.
      scalar_lr_scale: Factor of the learning rate of the scales, and of parameters of one element.
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
        # The owners of the statistics, by language, and the masks that they were found from.
        self._owners: dict[str, str] = {}
        self._seen: list[tuple[Tensor, int]] = []

    def _step(self) -> None:
        buckets = self._buckets_by_group()[0]
        members = {_SHARED: [bucket for bucket in buckets if not bucket.masked]}
        if self._masks is not None:
            members[self._owner(self._masks)] = [bucket for bucket in buckets if bucket.masked]
        parts = [self._part(owner, some) for owner, some in members.items() if some]
        clip = self._clip(parts)
        for part in parts:
            self._update_part(part, clip)
            part.statistics["step"] += 1
        self._updates.update(members.keys())

    def _owner(self, masks: PathwayMasks) -> str:
        """Under which language the statistics of the active sub-network are kept."""
        seen = [(code, code._version) for code in masks.codes.values()]
        if len(seen) != len(self._seen) or any(
            code is not earlier or version != earlier_version
            for (code, version), (earlier, earlier_version) in zip(seen, self._seen, strict=True)
        ):
            self._seen, self._owners = seen, {}
            self._updates.clear()
        if self._language not in self._owners:
            self._owners[self._language] = masks.canonical_language(self._language)
        return self._owners[self._language]

    def _part(self, owner: str, buckets: list[Bucket]) -> "_Part":
        active = [bucket.active_bits(self._masks, self._language) for bucket in buckets]
        gradients = [bucket.gradient(bits) for bucket, bits in zip(buckets, active, strict=True)]
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters]
        statistics: dict[str, Tensor] = self.state[owner]
        device = self.param_groups[0]["params"][0].device
        if not statistics:
            statistics["step"] = torch.zeros((), dtype=torch.int64)
            statistics["rms"] = torch.zeros(len(parameters), device=device)
            statistics["scale_grads"] = torch.zeros(_PERIOD, len(parameters), device=device)
            statistics["scale_exp_avg_sq"] = torch.zeros(len(parameters), device=device)
            statistics["norms"] = torch.zeros(_RING, device=device)
            statistics["threshold"] = torch.full((), math.inf, device=device)
        elif len(statistics["rms"]) != len(parameters):
            raise ValueError(
                f"the optimizer's state has statistics of {len(statistics['rms'])} tensors for {owner}, and there are "
                f"{len(parameters)}: masks must cover the same parameters throughout a training"
            )
        for name in statistics.keys() - {"step"}:  # which stays where reading it waits for no device
            statistics[name] = statistics[name].to(device)
        corrected = self._updates[owner] < len(self._correction)
        return _Part(buckets, active, gradients, statistics, corrected)

    def _clip(self, parts: list["_Part"]) -> Tensor | None:
        """What to scale the gradient by; zero if it is not finite. None: nothing."""
        statistics = parts[-1].statistics
        step = int(statistics["step"])
        if self._clipping_scale is None or step == 0:
            return None
        sizes = torch.cat([part.statistics["rms"] for part in parts])
        lengths = torch.cat([_lengths(part, part.gradients) for part in parts])
        norm = torch.linalg.vector_norm(sizes * lengths)
        statistics["norms"][step % _RING] = norm
        if step in _FIRST_MEDIANS or step % _RING == 0:
            statistics["threshold"].fill_(self._threshold(statistics["norms"], step))
        return (statistics["threshold"] / norm).clamp(max=1.0).nan_to_num(nan=0.0)

    def _threshold(self, norms: Tensor, step: int) -> Tensor:
        """The norm that gradients are scaled down to.

        Raises:
          ValueError: At least half of the gradients were not finite.
        """
        assert self._clipping_scale is not None
        first = step in _FIRST_MEDIANS
        norms = norms.sort().values[-step if first else 0 :]
        median = norms[len(norms) // 4 * 2]
        if not median.isfinite():
            raise ValueError(
                f"the gradient was not finite in half of the last {len(norms)} steps: lower --base-lr, or look for bad "
                "cuts; --use-fp16 0 shows whether half precision is to blame"
            )
        return median * self._clipping_scale * (2 if first else 1)

    def _update_part(self, part: "_Part", clip: Tensor | None) -> None:
        statistics, lr = part.statistics, self.param_groups[0]["lr"]
        step = int(statistics["step"])
        place = step % _PERIOD
        if clip is not None:
            for gradient in part.gradients:
                cleared(gradient.mul_(clip), bits_of(clip > 0, gradient))  # what is not finite, times zero, is NaN
        if step == 0 or place == _PERIOD - 1:
            statistics["rms"] = self._rms(part)
        statistics["scale_grads"][place] = _dots(part)
        growth = self._growth(part, lr) if place == _PERIOD - 1 else None
        step_sizes = lr * statistics["rms"].clamp(min=_RMS_LIMITS[0])
        start = 0
        for i, bucket in enumerate(part.buckets):
            own = slice(start, start + len(bucket.sizes))
            self._update(
                bucket,
                part.gradients[i],
                part.active[i],
                step if part.corrected else None,
                step_sizes[own],
                None if growth is None else growth[own],
            )
            start = own.stop

    def _rms(self, part: "_Part") -> Tensor:
        """The RMS of every tensor's active entries; a tensor of one element counts as `scalar_lr_scale`."""
        pairs = zip(part.buckets, part.active, strict=True)
        lengths = _lengths(part, [cleared(bucket.weights(), bits) for bucket, bits in pairs])
        rms = lengths / part.numbers().clamp(min=1).sqrt()
        return rms.masked_fill(part.scalars(), self._scalar_lr_scale)

    def _growth(self, part: "_Part", lr: float) -> Tensor:
        """By how much of itself every tensor is to grow, at the end of a period."""
        statistics = part.statistics
        rms, moment = statistics["rms"], statistics["scale_exp_avg_sq"]
        lowest, highest = _RMS_LIMITS
        beta2 = self._betas[1] ** _PERIOD
        moment.lerp_(statistics["scale_grads"].square().mean(dim=0), 1 - beta2)
        correction = math.sqrt(1 - self._betas[1] ** (int(statistics["step"]) + 1))
        growth = statistics["scale_grads"].sum(dim=0).div(moment.sqrt() + self._eps)
        growth = growth.mul_(-lr * self._scalar_lr_scale * correction)
        growth.masked_fill_((rms < lowest) | part.scalars(), 0.0)
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
        """One step of one bucket, after `step` others; None: so many that no moment needs a correction any more.

        Everything is changed by subtracting what is +0.0 outside the mask.
        """
        beta1, beta2 = self._betas
        exp_avg_sq, delta = self._state_of(bucket, "exp_avg_sq", "delta")
        exp_avg_sq.sub_(cleared(torch.addcmul(exp_avg_sq, gradient, gradient, value=-1), active), alpha=1 - beta2)
        denominator = exp_avg_sq.add(_NOT_ZERO).sqrt_()
        if step is not None and active is None:
            denominator.mul_(self._correction[min(step + 1, len(self._correction) - 1)])
        elif step is not None and active is not None:
            denominator.mul_(self._corrections(bucket, active))
        change = bucket.scale_(gradient.div_(denominator.add_(self._eps)), step_sizes)
        if growth is not None:
            change.sub_(bucket.scale_(bucket.weights(), growth))
        difference = torch.sub(delta, change, out=denominator)
        delta.sub_(cleared(difference, active), alpha=1 - beta1)
        bucket.subtract(delta if active is None else chosen(delta, active, out=denominator))
        for parameter in bucket.parameters:
            if parameter.numel() == 1 and active is None:
                parameter.clamp_(-_MAX_SCALAR, _MAX_SCALAR)

    def _corrections(self, bucket: Bucket, active: Tensor) -> Tensor:
        """Count this update of the active entries, and give every entry's correction of its second moment's root."""
        if active.device not in self._tables:
            self._tables[active.device] = torch.tensor(self._correction, device=active.device)
        return look_up(self._tables[active.device], self._count(bucket, active, most=len(self._correction) - 1))


@dataclass
class _Part:
    """Parameters that have their statistics in common, in one step.

    Attributes:
      buckets: The parameters.
      active: The bits of each bucket's active entries.
      gradients: Each bucket's gradient, zero where not active.
      statistics: Under "rms", "scale_grads" and "scale_exp_avg_sq", a number (or one for each step of the period) for
        each parameter; "step", the steps so far; "norms" and "threshold", what clipping goes by.
      corrected: Whether second moments of active entries may still be in need of a correction.
    """

    buckets: list[Bucket]
    active: list[Tensor | None]
    gradients: list[Tensor]
    statistics: dict[str, Tensor]
    corrected: bool

    def split(self, flat: list[Tensor]) -> list[Tensor]:
        """Every parameter's part of each bucket's tensor (n,), 1-dim."""
        return [
            piece for bucket, values in zip(self.buckets, flat, strict=True) for piece in values.split(bucket.sizes)
        ]

    def sizes(self) -> Tensor:
        """How many entries each parameter has."""
        return torch.cat([bucket.lengths for bucket in self.buckets])

    def scalars(self) -> Tensor:
        """Which of the parameters have one entry: bool."""
        return self.sizes() == 1

    def numbers(self) -> Tensor:
        """How many active entries each parameter has."""
        if self.active[0] is None:
            return self.sizes()
        bits = [bits for bits in self.active if bits is not None]
        return -torch.stack([piece.sum() for piece in self.split(bits)])  # all bits: -1


def _lengths(part: _Part, flat: list[Tensor]) -> Tensor:
    """Every parameter's norm."""
    return torch.stack([torch.linalg.vector_norm(piece) for piece in part.split(flat)])


def _dots(part: _Part) -> Tensor:
    """Every parameter's product with its gradient."""
    parameters = [parameter.flatten() for bucket in part.buckets for parameter in bucket.parameters]
    pairs = zip(parameters, part.split(part.gradients), strict=True)
    return torch.stack([torch.dot(weight, gradient) for weight, gradient in pairs])


def _correction_table(beta2: float) -> list[float]:
    """Factors of the root of the second moment by the number of updates; the last, 1, serves all later ones."""
    table = [1.0]  # of an entry never updated, whose change must not be computed from infinity
    while (rest := 1 - beta2 ** len(table)) < _NO_CORRECTION:
        table.append(rest**-0.5)
    return [*table, 1.0]
