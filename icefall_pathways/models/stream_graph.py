"""Streaming inference with a frozen TorchScript graph, for CPUs, where a chunk takes a thousand small operations.

The graph is a trace of `Transducer.stream` with fixed weights. Everything that depends only on the weights becomes a
constant (position keys, transposed weights, kernels of convolutions), and no Python runs between operations. Before the
trace, modules that have a faster equivalent for fixed weights (`Foldable`) are replaced by it.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from icefall_pathways.constants import NUM_MEL_BINS
from icefall_pathways.models.transducer import Transducer

#: Signature of `Transducer.stream`.
StreamFunction = Callable[[Tensor, Tensor, list[Tensor]], tuple[Tensor, Tensor, list[Tensor]]]

_TRACED_STREAMS = 3  # batch size of the trace; the graph accepts any, but tracing makes a size of 1 a constant


@runtime_checkable
class Foldable(Protocol):
    """A module that has a faster equivalent for fixed weights."""

    def folded(self) -> nn.Module:
        """Return the equivalent, which has the same signature and shares the weights."""


class StreamGraph:
    """`model.stream` with fixed weights and chunk size, as a frozen graph; equal to it up to rounding.

    Later changes of the model, its weights or its chunk size have no effect.

    Args:
      model: A transducer in eval mode on a CPU.
      weights: Tensors that replace parameters (masked weights), by parameter name.
    """

    def __init__(self, model: Transducer, weights: Mapping[str, Tensor]) -> None:
        folded = _fold(_with_weights(model, weights))
        self._graph = _trace(_StreamModule(folded.stream), folded)

    @torch.inference_mode()
    def __call__(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of every stream; see `Transducer.stream`."""
        # torch's optimizations take seconds to compile for every batch size, without a speed-up.
        with torch.jit.optimized_execution(False):
            out, lens, new_states = self._graph(x, x_lens, states)
        return out, lens, new_states


class _StreamModule(nn.Module):
    """Wrap a function in a module without parameters, so that the trace contains the weights as constants."""

    def __init__(self, function: StreamFunction) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.function(x, x_lens, states)


def _with_weights(model: Transducer, weights: Mapping[str, Tensor]) -> Transducer:
    """Return a copy of the model with `weights`; all other tensors are shared."""
    memo = {
        id(parameter): nn.Parameter(weights.get(name, parameter).detach(), requires_grad=False)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, memo)


def _fold(model: Transducer) -> Transducer:
    """Replace modules of `model` by their faster equivalents, in place."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                # Stored transposed, a weight is read faster.
                module.weight = nn.Parameter(module.weight.t().contiguous().t(), requires_grad=False)
            elif isinstance(module, Foldable):
                setattr(parent, name, module.folded())
    return model


@torch.no_grad()
def _trace(module: _StreamModule, model: Transducer) -> torch.jit.ScriptModule:
    states = model.init_states(_TRACED_STREAMS)
    x = torch.zeros(_TRACED_STREAMS, model.chunk_window, NUM_MEL_BINS, dtype=model.joiner.encoder_proj.weight.dtype)
    x_lens = torch.full((_TRACED_STREAMS,), model.chunk_window)
    with warnings.catch_warnings():
        # The warnings are about shapes, which are fixed except for the batch size.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(module.eval(), (x, x_lens, states), check_trace=False)
    return torch.jit.freeze(traced)
