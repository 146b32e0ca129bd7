"""Debugging of numerics: find the first non-finite tensor; measure outputs, gradients and parameters."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn


class NonFiniteError(ValueError):
    """The output of a module, or the gradient of its output, has a non-finite value."""


@contextmanager
def inf_check(model: nn.Module, gradients: bool = True) -> Iterator[None]:
    """Raise an error at the first module whose output, or the gradient of its output, is not finite.

    The host waits for the device after each module, so use this for debugging only.

    Args:
      model: The model to check inside the context.
      gradients: Whether to check gradients. Use False with a loss scaler, which lowers its factor when they overflow.

    Raises:
      NonFiniteError: A value is not finite; the message names the module and the share of non-finite values.
    """

    def check(name: str, kind: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value).all()):
            share = float((~torch.isfinite(value)).float().mean())
            raise NonFiniteError(
                f"{kind} of {name} is not finite in {100 * share:.2g} % of its {value.numel()} values, and is the "
                "first such tensor: check the module and the saved batch, or lower --base-lr"
            )

    with _hooks(model, check, gradients):
        yield


class Diagnostics:
    """Collect the magnitudes of module outputs, of their gradients, and of parameters.

    Args:
      model: The model to measure.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sums: dict[tuple[str, str], list[float]] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect statistics of all forward and backward passes in this context."""
        with _hooks(self._model, self._add):
            yield

    def report(self) -> str:
        """Return a table of root mean squares and largest absolute values of all modules and parameters."""
        rows = [
            [name, kind, (squares / count) ** 0.5 if count else 0.0, largest]
            for (name, kind), (squares, count, largest) in self._sums.items()
        ]
        for name, parameter in self._model.named_parameters():
            value = parameter.detach().float()
            rows.append([name, "parameter", float(value.square().mean().sqrt()), float(value.abs().max())])
        return tabulate(rows, ["name", "tensor", "root mean square", "largest"], "simple_outline", floatfmt=".3g")

    def _add(self, name: str, kind: str, value: Tensor) -> None:
        value = value.detach().double()
        sums = self._sums.setdefault((name, kind), [0.0, 0.0, 0.0])
        sums[0] += float(value.square().sum())
        sums[1] += value.numel()
        sums[2] = max(sums[2], float(value.abs().max()) if value.numel() else 0.0)


@contextmanager
def _hooks(model: nn.Module, inspect: Callable[[str, str, Tensor], None], gradients: bool = True) -> Iterator[None]:
    """Call `inspect(name, kind, tensor)` for each output of a module, and for its gradient."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def forward_hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if tensor.is_floating_point():
                    inspect(name, "output", tensor)
                    if tensor.requires_grad and gradients:
                        tensor.register_hook(lambda grad: inspect(name, "gradient of the output", grad))

        return forward_hook

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
