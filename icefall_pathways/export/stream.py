"""The streaming encoder as an ONNX graph that all languages share.

Masked weights are inputs of the graph, so that one graph, and one copy of all other weights, serve every language.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from icefall_pathways.export.onnx import WeightsAsInputs, export_onnx
from icefall_pathways.models.folding import example_chunk, fold
from icefall_pathways.models.transducer import Transducer

_EXAMPLE_STREAMS = 3  # a size of 1 would become a constant of the graph


@dataclass(frozen=True)
class StreamGraph:
    """`Transducer.stream` as an ONNX graph, for any number N of streams.

    Attributes:
      onnx: The serialized graph.
      inputs: Names of its inputs without weights: `x` (N, chunk_window, 80), `x_lens` (N,), `state_0`, ...
      outputs: Names of its outputs: `encoder_out` (N, chunk_shift / 4, D), `encoder_out_lens` (N,), `new_state_0`, ...
      weights: Names of the inputs that are weights; see `language_weights`.
    """

    onnx: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


def export_stream(model: Transducer, masked_weights: Mapping[str, Tensor]) -> StreamGraph:
    """Export `model.stream` with its present chunk size.

    Args:
      model: A transducer in eval mode on a CPU.
      masked_weights: Parameters that differ between languages, with the values of any language, by name.
    """
    folded = fold(model, masked_weights)
    weights = {name: weight for name, weight in folded.weights.items() if name.startswith("encoder")}
    x, x_lens, states = example_chunk(model, _EXAMPLE_STREAMS)
    state_names = [f"state_{i}" for i in range(len(states))]
    inputs = {"x": x, "x_lens": x_lens, **dict(zip(state_names, states, strict=True))}
    outputs = ["encoder_out", "encoder_out_lens", *(f"new_{name}" for name in state_names)]
    axes = [0, 0, *model.encoder.state_axes]
    graph = export_onnx(
        WeightsAsInputs(_StreamModule(folded.model), folded.model, weights).eval(),
        inputs | weights,
        outputs,
        dict(zip([*inputs, *outputs], axes * 2, strict=True)),
    )
    return StreamGraph(graph, tuple(inputs), tuple(outputs), tuple(weights))


def language_weights(
    model: Transducer, masked_weights: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """Return the inputs `names` of an exported graph for a language; those of linear layers are not copied."""
    weights = fold(model, masked_weights).weights
    return {name: weights[name] for name in names}


class _StreamModule(nn.Module):
    """`Transducer.stream` as a function of tensors only."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, x_lens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        out, lens, new_states = self.model.stream(x, x_lens, list(states))
        return out, lens, *new_states
