"""What optimizers share that touch nothing outside the active sub-network."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

NamedParameters = Iterable[tuple[str, nn.Parameter]]

# Integers as wide as the floating-point types, to look at their bits.
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class MaskedOptimizer(torch.optim.Optimizer):
    """An optimizer whose step is defined on the entries of one language's mask.

    Entries outside the active mask, and their state, are bit for bit what they were before the step.

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
        """Limit the gradient, and update the entries of the active sub-network."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    @abstractmethod
    def _step(self) -> None: ...

    def _is_masked(self, parameter: nn.Parameter) -> bool:
        return self._masks is not None and self._names[parameter] in self._masks.codes

    def _active_bits(self, parameter: nn.Parameter) -> Tensor | None:
        """All bits set where the active mask keeps an entry, none elsewhere; None where there is no mask."""
        if self._masks is None or not self._is_masked(parameter):
            return None
        mask = self._masks.mask(self._names[parameter], self._language)
        return mask.to(_INTEGERS[parameter.element_size()]).neg_()


def cleared(values: Tensor, active: Tensor | None) -> Tensor:
    """`values`, changed in place to +0.0 where no bit of `active` is set.

    Subtracting +0.0 leaves every number as it is, -0.0 included. Clearing bits is several times quicker than
    `torch.where`, and clears NaN as well.
    """
    if active is not None:
        values.view(active.dtype).bitwise_and_(active)
    return values


def look_up(table: Tensor, counts: Tensor) -> Tensor:
    """The entries of a table (n,) at the indices in `counts`, of any shape; far quicker than computing them."""
    return table.index_select(0, counts.flatten()).view(counts.shape)
