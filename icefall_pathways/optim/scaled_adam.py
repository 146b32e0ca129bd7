"""ScaledAdam that touches nothing outside the active sub-network."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icefall_pathways.optim.masked_optimizer import MaskedOptimizer, NamedParameters, cleared, look_up
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
        parameters = self.param_groups[0]["params"]
        members = {_SHARED: [p for p in parameters if not self._is_masked(p)]}
        if self._masks is not None:
            members[self._owner(self._masks)] = [p for p in parameters if self._is_masked(p)]
        parts = [self._part(owner, group) for owner, group in members.items() if group]
        clip = self._clip(parts)
        for part in parts:
            self._update_part(part, clip)
            part.statistics["step"] += 1

    def _owner(self, masks: PathwayMasks) -> str:
        """Under which language the statistics of the active sub-network are kept."""
        seen = [(code, code._version) for code in masks.codes.values()]
        if len(seen) != len(self._seen) or any(
            code is not earlier or version != earlier_version
            for (code, version), (earlier, earlier_version) in zip(seen, self._seen, strict=True)
        ):
            self._seen, self._owners = seen, {}
        if self._language not in self._owners:
            self._owners[self._language] = masks.first_equal(self._language)
        return self._owners[self._language]

    def _part(self, owner: str, parameters: list[nn.Parameter]) -> "_Part":
        active = [self._active_bits(parameter) for parameter in parameters]
        gradients = [_gradient(p, bits) for p, bits in zip(parameters, active, strict=True)]
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
        return _Part(parameters, active, gradients, statistics)

    def _clip(self, parts: list["_Part"]) -> Tensor | None:
        """What to scale the gradient by; zero if it is not finite. None: nothing."""
        statistics = parts[-1].statistics
        step = int(statistics["step"])
        if self._clipping_scale is None or step == 0:
            return None
        sizes = torch.cat([part.statistics["rms"] for part in parts])
        lengths = torch.stack([torch.linalg.vector_norm(g) for part in parts for g in part.gradients])
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
        gradients = part.gradients if clip is None else [_scaled(gradient, clip) for gradient in part.gradients]
        if step == 0 or place == _PERIOD - 1:
            statistics["rms"] = self._rms(part)
        dots = [torch.dot(p.flatten(), g.flatten()) for p, g in zip(part.parameters, gradients, strict=True)]
        statistics["scale_grads"][place] = torch.stack(dots)
        growth = self._growth(statistics, lr) if place == _PERIOD - 1 else None
        step_sizes = lr * statistics["rms"].clamp(min=_RMS_LIMITS[0])
        for i, parameter in enumerate(part.parameters):
            self._update(
                parameter,
                gradients[i],
                part.active[i],
                step,
                step_sizes[i],
                growth[i] if growth is not None and parameter.numel() > 1 else None,
            )

    def _rms(self, part: "_Part") -> Tensor:
        """The RMS of every tensor's active entries; a tensor of one element counts as `scalar_lr_scale`."""
        found = []
        for parameter, active in zip(part.parameters, part.active, strict=True):
            if parameter.numel() == 1:
                found.append(torch.full((), self._scalar_lr_scale, device=parameter.device))
            elif active is None:
                found.append(torch.linalg.vector_norm(parameter) / math.sqrt(parameter.numel()))
            else:
                number = torch.count_nonzero(active).clamp(min=1)
                found.append(torch.linalg.vector_norm(cleared(parameter.clone(), active)) / number.sqrt())
        return torch.stack(found)

    def _growth(self, statistics: dict[str, Tensor], lr: float) -> Tensor:
        """By how much of itself every tensor is to grow, at the end of a period."""
        rms, moment = statistics["rms"], statistics["scale_exp_avg_sq"]
        lowest, highest = _RMS_LIMITS
        beta2 = self._betas[1] ** _PERIOD
        moment.lerp_(statistics["scale_grads"].square().mean(dim=0), 1 - beta2)
        correction = math.sqrt(1 - self._betas[1] ** (int(statistics["step"]) + 1))
        growth = statistics["scale_grads"].sum(dim=0).div(moment.sqrt() + self._eps)
        growth = growth.mul_(-lr * self._scalar_lr_scale * correction).masked_fill_(rms < lowest, 0.0)
        return torch.minimum(growth.clamp(-_MAX_SCALE_CHANGE, _MAX_SCALE_CHANGE), (highest - rms) / rms)

    def _update(
        self,
        parameter: nn.Parameter,
        grad: Tensor,
        active: Tensor | None,
        step: int,
        step_size: Tensor,
        growth: Tensor | None,
    ) -> None:
        """One step of one parameter; everything is changed by subtracting what is +0.0 outside the mask."""
        beta1, beta2 = self._betas
        state = self.state[parameter]
        if not state:
            state["exp_avg_sq"], state["delta"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        exp_avg_sq, delta = state["exp_avg_sq"], state["delta"]
        exp_avg_sq.sub_(cleared(torch.addcmul(exp_avg_sq, grad, grad, value=-1), active), alpha=1 - beta2)
        denominator = exp_avg_sq.add(_NOT_ZERO).sqrt_()
        if active is None:
            denominator.mul_(self._correction[min(step + 1, len(self._correction) - 1)])
        else:
            denominator.mul_(self._corrections(state, active))
        change = grad.div(denominator.add_(self._eps)).mul_(step_size)
        if growth is not None:
            change.addcmul_(parameter, growth, value=-1)
        delta.sub_(cleared(torch.sub(delta, change), active), alpha=1 - beta1)
        parameter.sub_(delta if active is None else cleared(delta.clone(), active))
        if parameter.numel() == 1 and active is None:
            parameter.clamp_(-_MAX_SCALAR, _MAX_SCALAR)

    def _corrections(self, state: dict[str, Tensor], active: Tensor) -> Tensor:
        """Count this update of the active entries, and give every entry's correction of its second moment's root."""
        if "step" not in state:  # torch's load_state_dict keeps the type of "step", and of nothing else
            state["step"] = torch.zeros(active.shape, dtype=torch.int32, device=active.device)
        state["step"] = state["step"].to(active.device).sub_(active).clamp_(max=len(self._correction) - 1)
        table = self._tables.setdefault(active.device, torch.tensor(self._correction, device=active.device))
        return look_up(table, state["step"])


@dataclass
class _Part:
    """Parameters that have their statistics in common, in one step.

    Attributes:
      parameters: The parameters.
      active: The bits of their active entries (`MaskedOptimizer._active_bits`).
      gradients: Their gradients, zero where not active.
      statistics: Under "rms", "scale_grads" and "scale_exp_avg_sq", a number (or one for each step of the period) for
        each of them; "step", the steps so far; "norms" and "threshold", what clipping goes by.
    """

    parameters: list[nn.Parameter]
    active: list[Tensor | None]
    gradients: list[Tensor]
    statistics: dict[str, Tensor]


def _gradient(parameter: nn.Parameter, active: Tensor | None) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return cleared(parameter.grad, active)


def _scaled(gradient: Tensor, clip: Tensor) -> Tensor:
    """The gradient times `clip`, and zero where that is no number."""
    return gradient.mul(clip).nan_to_num_(nan=0.0)


def _correction_table(beta2: float) -> list[float]:
    """Factors of the root of the second moment by the number of updates; the last, 1, serves all later ones."""
    table = [1.0]  # of an entry never updated, whose change must not be computed from infinity
    while (rest := 1 - beta2 ** len(table)) < _NO_CORRECTION:
        table.append(rest**-0.5)
    return [*table, 1.0]
