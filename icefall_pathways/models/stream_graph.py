"""The next chunk of streams by a frozen graph: for inference on CPUs, where a chunk is a thousand small steps.

The graph is `Transducer.stream` itself, traced once with fixed weights. Whatever depends on these alone becomes a
constant: position keys, transposed weights, the kernels of convolutions; and no Python runs between two steps. Modules
with a quicker equivalent for fixed weights are replaced by it before (`Foldable`).
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

_TRACED_STREAMS = 3  # of the example; any number can be given later, but 1 would be taken for a constant


@runtime_checkable
class Foldable(Protocol):
    """A module that has a quicker equivalent where weights are fixed."""

    def folded(self) -> nn.Module:
        """The equivalent, which is called in the same way; it shares the weights."""


class StreamGraph:
    """`model.stream` of fixed weights and chunks, as a frozen graph; equal up to rounding.

    Later changes of the model, its weights or its chunks are not seen.

    Args:
      model: In eval mode, on a CPU.
      weights: What to compute with in place of parameters of these names, such as the products with a mask.
    """

    def __init__(self, model: Transducer, weights: Mapping[str, Tensor]) -> None:
        folded = _fold(_with_weights(model, weights))
        self._graph = _trace(_Step(folded.stream), folded)

    @torch.inference_mode()
    def __call__(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """See `Transducer.stream`."""
        # Torch's own optimisations compile for seconds, again for every number of streams, and gain nothing.
        with torch.jit.optimized_execution(False):
            out, lens, new_states = self._graph(x, x_lens, states)
        return out, lens, new_states


class _Step(nn.Module):
    """A function as a module without parameters: what it computes with becomes constant in a trace."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.step(x, x_lens, states)


def _with_weights(model: Transducer, weights: Mapping[str, Tensor]) -> Transducer:
    """A copy of the model that computes with `weights`, and shares all tensors."""
    memo = {
        id(parameter): nn.Parameter(weights.get(name, parameter).detach(), requires_grad=False)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, memo)


def _fold(model: Transducer) -> Transducer:
    """Replace modules of `model` by their quicker equivalents."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                # Transposed in memory, in which order it is read faster.
                module.weight = nn.Parameter(module.weight.t().contiguous().t(), requires_grad=False)
            elif isinstance(module, Foldable):
                setattr(parent, name, module.folded())
    return model


@torch.no_grad()
def _trace(step: _Step, model: Transducer) -> torch.jit.ScriptModule:
    states = model.init_states(_TRACED_STREAMS)
    x = torch.zeros(_TRACED_STREAMS, model.chunk_window, NUM_MEL_BINS, dtype=model.joiner.encoder_proj.weight.dtype)
    x_lens = torch.full((_TRACED_STREAMS,), model.chunk_window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of shapes, which are fixed but for the streams
        traced = torch.jit.trace(step.eval(), (x, x_lens, states), check_trace=False)
    return torch.jit.freeze(traced)
