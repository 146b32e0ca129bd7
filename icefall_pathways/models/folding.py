"""Equivalents of modules for exported graphs, in which weights and chunk size are fixed."""

import copy
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.constants import NUM_MEL_BINS
from icefall_pathways.models.transducer import Transducer


@runtime_checkable
class Foldable(Protocol):
    """A module that has a faster equivalent for fixed weights and one shape of its inputs."""

    def folded(self, *inputs: Any) -> nn.Module:
        """Return the equivalent, which has the same signature, for inputs of these shapes (except the batch size)."""


class FoldedModel(NamedTuple):
    """A model for inference with fixed weights.

    Attributes:
      model: The model; its parameters are shared with the original where they are the same.
      weights: Those of its parameters that depend on the replaced weights, by parameter name.
    """

    model: Transducer
    weights: dict[str, Tensor]


class FoldedLinear(nn.Module):
    """A linear layer that reads its weight (D, C) in the order in memory.

    Args:
      linear: The linear layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (N, ..., D) for x (N, ..., C)."""
        out: Tensor = _Product.apply(x, self.weight, [int(size) for size in x.shape[1:-1]], int(self.weight.size(0)))
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    """The product of rows x (N, ..., C) and a weight (D, C), with an ONNX graph of its own.

    ONNX Runtime packs a constant weight in advance. A weight that is an input of the graph is packed at each call if it
    is the right factor of a product, which takes as long as the product; the left factor is read as it is.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: list[int], width: int) -> Tensor:
        return F.linear(x, weight)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, sizes: list[int], width: int) -> Any:
        rows = g.op("Flatten", x, axis_i=len(sizes) + 1)
        columns = g.op("MatMul", weight, g.op("Transpose", rows, perm_i=[1, 0]))
        out = g.op("Transpose", columns, perm_i=[1, 0])
        if not sizes:
            return out
        shape = g.op("Constant", value_t=torch.tensor([-1, *sizes, width]))
        return g.op("Reshape", out, shape)


def fold(model: Transducer, weights: Mapping[str, Tensor], as_inputs: bool = False) -> FoldedModel:
    """Return an equivalent model for `stream` with its present chunk size.

    Args:
      model: The model, in eval mode.
      weights: Tensors that replace parameters (masked weights), by parameter name. The parameters that depend on them
        have the same names, shapes and order for any tensors with these names.
      as_inputs: `weights` are inputs of the graph instead of constants. Modules with such parameters are not folded, so
        that the parameters that depend on `weights` are `weights`, and linear layers read them in the order in memory.
    """
    folded = _with_weights(model, weights)
    inputs = _inputs_of_foldable_modules(folded)
    if as_inputs:
        kept = {path for path in inputs if any(name.startswith(f"{path}.") for name in weights)}
        inputs = {path: args for path, args in inputs.items() if path not in kept}
    variable = _fold_children(folded, "", inputs, set(weights))
    if as_inputs:
        _fold_linear_layers(folded, weights)
    return FoldedModel(folded, variable)


def _fold_linear_layers(model: nn.Module, weights: Collection[str]) -> None:
    """Fold the linear layers that have these weights, in place."""
    for path in (name.removesuffix(".weight") for name in weights if name.endswith(".weight")):
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, FoldedLinear(module))


def _fold_children(
    parent: nn.Module, prefix: str, inputs: Mapping[str, tuple[Any, ...]], replaced: Collection[str]
) -> dict[str, Tensor]:
    """Fold the modules below `parent` in place; return the parameters that depend on replaced ones."""
    variable: dict[str, Tensor] = {}
    for name, module in list(parent.named_children()):
        path = prefix + name
        if isinstance(module, Foldable) and path in inputs:
            module_replaced = any(key in replaced for key, _ in module.named_parameters(path))
            setattr(parent, name, module := module.folded(*inputs[path]))
            variable.update(module.named_parameters(path) if module_replaced else ())
            continue
        own = module.named_parameters(path, recurse=False)
        variable.update((key, parameter) for key, parameter in own if key in replaced)
        variable.update(_fold_children(module, f"{path}.", inputs, replaced))
    return variable


def _with_weights(model: Transducer, weights: Mapping[str, Tensor]) -> Transducer:
    """Return a copy of the model with `weights`; all other tensors are shared."""
    memo = {
        id(parameter): nn.Parameter(weights.get(name, parameter).detach(), requires_grad=False)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, memo)


@torch.inference_mode(False)
@torch.no_grad()
def _inputs_of_foldable_modules(model: Transducer) -> dict[str, tuple[Any, ...]]:
    """Encode a chunk, and return the inputs of each `Foldable` module by its name."""
    inputs: dict[str, tuple[Any, ...]] = {}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, Foldable) and isinstance(module, nn.Module):
                hook = module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args}))
                hooks.callback(hook.remove)
        model.stream(*example_chunk(model, 1))
    return inputs


def example_chunk(model: Transducer, num_streams: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return arguments of `model.stream`: a chunk of zeros for each of `num_streams` new streams."""
    x = torch.zeros(num_streams, model.chunk_window, NUM_MEL_BINS, dtype=model.joiner.encoder_proj.weight.dtype)
    return x, torch.full((num_streams,), model.chunk_window), model.init_states(num_streams)
