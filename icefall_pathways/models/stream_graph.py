"""Streaming by a frozen TorchScript graph, for inference on CPUs, where a chunk is a thousand small operations.

The graph is a trace of `Transducer.stream` with fixed weights. Everything that depends on the weights alone becomes a
constant (position keys, transposed weights, kernels of convolutions), and no Python runs between operations. Before the
trace, modules with a faster equivalent for fixed weights are replaced by it (`Foldable`).
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from icefall_pathways.constants import NUM_MEL_BINS
from icefall_pathways.models.transducer import Transducer

#: As `Transducer.stream`.
Step = Callable[[Tensor, Tensor, list[Tensor]], tuple[Tensor, Tensor, list[Tensor]]]

_TRACED_STREAMS = 3  # batch size of the trace, which becomes a variable; a trace makes 1 a constant


@runtime_checkable
class Foldable(Protocol):
    """A module that has a faster equivalent for fixed weights."""

    def folded(self) -> nn.Module:
        """Return the equivalent, which has the same signature and shares the weights."""


class StreamGraph:
    """`model.stream` with fixed weights and chunk size, as a frozen graph; equal to it up to rounding.

    Later changes of the model, its weights or its chunk size have no effect.

    Args:
      model: In eval mode, on a CPU.
      weights: Replacements of parameters, by name, such as masked weights.
    """

    def __init__(self, model: Transducer, weights: Mapping[str, Tensor]) -> None:
        folded = _fold(_with_weights(model, weights))
        self._graph = _trace(_StreamModule(folded.stream), folded)

    @torch.inference_mode()
    def __call__(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of every stream; see `Transducer.stream`."""
        # torch's optimizations compile for seconds, again for every batch size, and are not faster.
        with torch.jit.optimized_execution(False):
            out, lens, new_states = self._graph(x, x_lens, states)
        return out, lens, new_states


class _StreamModule(nn.Module):
    """A function as a module without parameters, so that a trace contains the weights as constants."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.step(x, x_lens, states)


def _with_weights(model: Transducer, weights: Mapping[str, Tensor]) -> Transducer:
    """Return a copy of the model with `weights` that shares all other tensors."""
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
                # Transposed in memory, the order in which it is read faster.
                module.weight = nn.Parameter(module.weight.t().contiguous().t(), requires_grad=False)
            elif isinstance(module, Foldable):
                setattr(parent, name, module.folded())
    return model


@torch.no_grad()
def _trace(step: _StreamModule, model: Transducer) -> torch.jit.ScriptModule:
    states = model.init_states(_TRACED_STREAMS)
    x = torch.zeros(_TRACED_STREAMS, model.chunk_window, NUM_MEL_BINS, dtype=model.joiner.encoder_proj.weight.dtype)
    x_lens = torch.full((_TRACED_STREAMS,), model.chunk_window)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", torch.jit.TracerWarning
        )  # about shapes, which are fixed except for the batch size
        traced = torch.jit.trace(step.eval(), (x, x_lens, states), check_trace=False)
    return torch.jit.freeze(traced)
