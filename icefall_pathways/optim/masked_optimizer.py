"""What optimizers share that touch nothing outside the active sub-network."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.optim.buckets import Bucket, make_buckets
from icefall_pathways.pathways.masks import PathwayMasks

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class MaskedOptimizer(torch.optim.Optimizer):
    """An optimizer whose step is defined on the entries of one language's mask.

    Entries outside the active mask, and their state, are bit for bit what they were before the step. Parameters are
    dealt with in buckets; `state` has, by parameter, views of the buckets' state.

    Args:
      groups: torch's groups of parameters.
      named_parameters: The names of the parameters, by which masks know them.
      defaults: Options of the groups.
    """

    def __init__(
        self, groups: list[dict[str, Any]], named_parameters: NamedParameters, defaults: dict[str, Any]
    ) -> None:
        super().__init__(groups, defaults)
        self._names = {parameter: name for name, parameter in named_parameters}
        self._masks: PathwayMasks | None = None
        self._language = ""
        self._buckets: list[list[Bucket]] = []
        self._masked: set[str] = set()
        # How many updates all active entries of a sub-network have had at least: those that were seen since masks have
        # changed, or anything was forgotten or loaded.
        self._updates: Counter[str] = Counter()

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
        self._updates.clear()

    def reset(self) -> None:
        """Start anew with everything."""
        self.state.clear()
        self._buckets = []
        self._updates.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._buckets = []
        self._updates.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Limit the gradient, and update the entries of the active sub-network."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @abstractmethod
    def _step(self) -> None: ...

    def _buckets_by_group(self) -> list[list[Bucket]]:
        """The buckets of each group of parameters."""
        masked = set() if self._masks is None else self._masks.codes.keys() & self._names.values()
        if not self._buckets or masked != self._masked:
            self._masked = set(masked)
            self._buckets = [
                make_buckets([(self._names[p], p) for p in group["params"]], masked) for group in self.param_groups
            ]
        return self._buckets

    def _state_of(self, bucket: Bucket, *names: str) -> tuple[Tensor, ...]:
        """The bucket's state of these names (n,), zero at first."""
        for name in names:
            if name not in bucket.state:
                earlier = (self.state[p].get(name, torch.zeros_like(p)) for p in bucket.parameters)
                self._set_state(bucket, name, bucket.join(earlier))
        return tuple(bucket.state[name] for name in names)

    def _count(self, bucket: Bucket, active: Tensor | None, most: int) -> Tensor:
        """Count this update of the active entries, up to `most`.

        Returns:
          How many updates each entry has had, int32 (n,); 0-dim while that is the same for all of the bucket.
        """
        if "step" not in bucket.state:
            # torch's load_state_dict keeps the type of "step", and of nothing else, and leaves it where it was.
            none = torch.zeros((), dtype=torch.int32)
            device = bucket.parameters[0].device
            steps = [self.state[p].get("step", none) for p in bucket.parameters]
            if all(step.dim() == 0 for step in steps) and len({int(step) for step in steps}) == 1:
                self._set_state(bucket, "step", steps[0].to(device, copy=True))
            else:
                expanded = (step.to(device).expand(p.shape) for step, p in zip(steps, bucket.parameters, strict=True))
                self._set_state(bucket, "step", bucket.join(expanded))
        if active is not None and bucket.state["step"].dim() == 0:
            self._set_state(bucket, "step", bucket.state["step"].repeat(sum(bucket.sizes)))
        return bucket.state["step"].sub_(-1 if active is None else active).clamp_(max=most)

    def _set_state(self, bucket: Bucket, name: str, values: Tensor) -> None:
        bucket.state[name] = values
        views = bucket.split(values) if values.dim() else [values] * len(bucket.parameters)
        for parameter, view in zip(bucket.parameters, views, strict=True):
            self.state[parameter][name] = view


def look_up(table: Tensor, counts: Tensor) -> Tensor:
    """The entries of a table (n,) at the indices in `counts`, (m,) or 0-dim; far quicker than computing them."""
    return table.index_select(0, counts.flatten()).view(counts.shape)
