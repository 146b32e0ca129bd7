"""Base class of optimizers that update the active sub-network only."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.optim.buckets import Bucket, make_buckets
from icefall_pathways.pathways.masks import PathwayMasks

NamedParameters = Iterable[tuple[str, nn.Parameter]]

#: Added to second moments, since square roots of zeros, which are frequent outside masks, are very slow on CPUs. It is
#: far too small to affect the result.
TINY = 1e-36


class MaskedOptimizer(torch.optim.Optimizer):
    """An optimizer whose step is defined on the entries of one language's mask.

    A step leaves the entries outside the active mask and their state bitwise unchanged. Parameters are processed in
    buckets; `state` contains views of the buckets' state by parameter.

    Args:
      groups: Parameter groups, as in torch.optim.Optimizer.
      named_parameters: All parameters with their names in the masks.
      defaults: Default options of the groups.
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
        # Lower bound on the update count of every active entry of a sub-network: the number of its updates since masks
        # were changed, or state was reset or loaded.
        self._min_updates: Counter[str] = Counter()

    def activate(self, masks: PathwayMasks | None, language: str) -> None:
        """Select the sub-network that the following steps update; None selects the dense model."""
        self._masks = masks
        self._language = language

    @torch.no_grad()
    def reset_entries(self, name: str, entries: Tensor) -> None:
        """Reset the state of some entries of a parameter: their moments and update counts become zero.

        Args:
          name: The parameter's name.
          entries: Mask of the entries, bool, of the parameter's shape.
        """
        parameter = next(p for p, parameter_name in self._names.items() if parameter_name == name)
        for value in self.state.get(parameter, {}).values():
            if value.dim() > 0:
                value.masked_fill_(entries, 0)
        self._min_updates.clear()

    def reset(self) -> None:
        """Reset the state of all parameters."""
        self.state.clear()
        self._buckets = []
        self._min_updates.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        super().load_state_dict(state_dict)
        self._buckets = []
        self._min_updates.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip the gradient and update the entries of the active sub-network."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @abstractmethod
    def _step(self) -> None: ...

    def _buckets_by_group(self) -> list[list[Bucket]]:
        """Return the buckets of each parameter group."""
        masked = set() if self._masks is None else self._masks.codes.keys() & self._names.values()
        if not self._buckets or masked != self._masked:
            self._masked = set(masked)
            self._buckets = [
                make_buckets([(self._names[p], p) for p in group["params"]], masked) for group in self.param_groups
            ]
        return self._buckets

    def _bucket_state(self, bucket: Bucket, *names: str) -> tuple[Tensor, ...]:
        """Return the bucket's state tensors (n,) of these names, initially zero."""
        for name in names:
            if name not in bucket.state:
                earlier = (self.state[p].get(name, torch.zeros_like(p)) for p in bucket.parameters)
                self._set_state(bucket, name, bucket.join(earlier))
        return tuple(bucket.state[name] for name in names)

    def _count_update(self, bucket: Bucket, active: Tensor | None, max_count: int) -> Tensor:
        """Count this update of the active entries, up to `max_count`.

        Returns:
          The number of updates of each entry, int32 (n,), or 0-dim while it is the same for the whole bucket.
        """
        if "step" not in bucket.state:
            # torch's load_state_dict preserves dtype and device of "step" only.
            zero = torch.zeros((), dtype=torch.int32)
            device = bucket.parameters[0].device
            steps = [self.state[p].get("step", zero) for p in bucket.parameters]
            if all(step.dim() == 0 for step in steps) and len({int(step) for step in steps}) == 1:
                self._set_state(bucket, "step", steps[0].to(device, copy=True))
            else:
                expanded = (step.to(device).expand(p.shape) for step, p in zip(steps, bucket.parameters, strict=True))
                self._set_state(bucket, "step", bucket.join(expanded))
        if active is not None and bucket.state["step"].dim() == 0:
            self._set_state(bucket, "step", bucket.state["step"].repeat(sum(bucket.sizes)))
        return bucket.state["step"].sub_(-1 if active is None else active).clamp_(max=max_count)

    def _set_state(self, bucket: Bucket, name: str, values: Tensor) -> None:
        bucket.state[name] = values
        views = bucket.split(values) if values.dim() else [values] * len(bucket.parameters)
        for parameter, view in zip(bucket.parameters, views, strict=True):
            self.state[parameter][name] = view


def lookup(table: Tensor, counts: Tensor) -> Tensor:
    """Return the entries of a table (n,) at the indices `counts`, 1-dim or 0-dim."""
    return table.index_select(0, counts.flatten()).view(counts.shape)
