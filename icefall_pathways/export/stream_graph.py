"""The streaming encoder as an ONNX graph that all languages share.

Masked weights are not in the graph: a session of the graph receives those of its language as constants.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from icefall_pathways.export.onnx import EXAMPLE_STREAMS, export_onnx, without_values
from icefall_pathways.models.folding import example_chunk, fold
from icefall_pathways.models.transducer import Transducer

_PREFIX = "model."  # of parameters of `_StreamModule`
_FIRST_FILL = 1e6  # no weight has this value or a larger one


@dataclass(frozen=True)
class StreamGraph:
    """`Transducer.stream` as an ONNX graph, for any number N of streams.

    Attributes:
      onnx: The serialized graph.
      inputs: Names of its inputs: `x` (N, chunk_window, 80), `x_lens` (N,), `state_0`, ...
      outputs: Names of its outputs: `encoder_out` (N, chunk_shift / 4, D), `encoder_out_lens` (N,), `new_state_0`, ...
      weights: Names of the constants without values; see `language_weights`.
    """

    onnx: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


def export_stream(model: Transducer, masked: Collection[str]) -> StreamGraph:
    """Export `model.stream` with its present chunk size.

    Args:
      model: A transducer in eval mode on a CPU.
      masked: Names of the encoder's parameters that differ between languages.
    """
    parameters = dict(model.named_parameters())
    folded = fold(model, {name: parameters[name] for name in masked})
    for i, parameter in enumerate(folded.weights.values()):
        # The exporter merges constants that are equal, such as zeros of two biases.
        parameter.data = torch.full_like(parameter, _FIRST_FILL + i)
    x, x_lens, states = example_chunk(model, EXAMPLE_STREAMS)
    state_names = [f"state_{i}" for i in range(len(states))]
    inputs = {"x": x, "x_lens": x_lens, **dict(zip(state_names, states, strict=True))}
    outputs = ["encoder_out", "encoder_out_lens", *(f"new_{name}" for name in state_names)]
    axes = [0, 0, *model.encoder.state_axes]
    graph = export_onnx(
        _StreamModule(folded.model).eval(),
        inputs,
        outputs,
        dict(zip([*inputs, *outputs], axes * 2, strict=True)),
        fold_constants=False,  # it would merge weights with the operations on them
    )
    weights = tuple(_PREFIX + name for name in folded.weights)
    return StreamGraph(without_values(graph, weights), tuple(inputs), tuple(outputs), weights)


def language_weights(
    model: Transducer, masked_weights: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """Return the values of the constants `names` of an exported graph for a language; linear layers are not copied."""
    weights = fold(model, masked_weights).weights
    return {name: weights[name.removeprefix(_PREFIX)].detach() for name in names}


class _StreamModule(nn.Module):
    """`Transducer.stream` as a function of tensors only: the chunk and the state."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, x_lens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        out, lens, new_states = self.model.stream(x, x_lens, list(states))
        return out, lens, *new_states
