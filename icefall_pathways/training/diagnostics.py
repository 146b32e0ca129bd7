"""Looking into a model while it computes: where numbers stop being finite, and how large they are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn


class NotFiniteError(ValueError):
    """A module gave, or was given back, a number that is not finite."""


@contextmanager
def inf_check(model: nn.Module, gradients: bool = True) -> Iterator[None]:
    """Inside, the first module whose output, or the gradient of whose output, is not finite raises an error.

    Every module waits for the device: for looking into a run that goes wrong, not for training.

    Args:
      model: Whose modules to look at.
      gradients: Whether to look at gradients; with a loss scaler, which tries out how large they may become, it is no
        fault if one overflows.

    Raises:
      NotFiniteError: Names the module and the share of the numbers that are not finite.
    """

    def check(name: str, kind: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            share = float((~torch.isfinite(value)).float().mean())
            raise NotFiniteError(
                f"{kind} {name} is not finite in {100 * share:.2g} % of its {value.numel()} numbers, and it is the "
                "first: look at what it computes, at the batch that is saved, or lower --base-lr"
            )

    with _hooked(model, check, gradients):
        yield


class Diagnostics:
    """Gathers the sizes of the outputs of modules, of their gradients, and of the parameters.

    Args:
      model: Whose modules to look at.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sums: dict[tuple[str, str], list[float]] = {}

    @contextmanager
    def gathers(self) -> Iterator[None]:
        """Inside, every forward and backward pass counts."""
        with _hooked(self._model, self._add):
            yield

    def report(self) -> str:
        """A table: for each module the root mean square and the largest absolute value, and those of parameters."""
        rows = [
            [name, kind, (squares / count) ** 0.5 if count else 0.0, largest]
            for (name, kind), (squares, count, largest) in self._sums.items()
        ]
        for name, parameter in self._model.named_parameters():
            value = parameter.detach().float()
            rows.append([name, "parameter", float(value.square().mean().sqrt()), float(value.abs().max())])
        return tabulate(rows, ["name", "of the", "root mean square", "largest"], "simple_outline", floatfmt=".3g")

    def _add(self, name: str, kind: str, value: Tensor) -> None:
        value = value.detach().double()
        sums = self._sums.setdefault((name, kind), [0.0, 0.0, 0.0])
        sums[0] += float(value.square().sum())
        sums[1] += value.numel()
        sums[2] = max(sums[2], float(value.abs().max()) if value.numel() else 0.0)


@contextmanager
def _hooked(model: nn.Module, look: Callable[[str, str, Tensor], None], gradients: bool = True) -> Iterator[None]:
    """Inside, `look(name, kind, tensor)` is called for every output of a module, and for its gradient."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if tensor.is_floating_point():
                    look(name, "output of", tensor)
                    if tensor.requires_grad and gradients:
                        tensor.register_hook(lambda grad: look(name, "gradient of the output of", grad))

        return after

    with ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_hook(hook(name or "the model"))
            stack.callback(handle.remove)
        yield


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
