"""Export of modules to ONNX graphs."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.files import atomic_write
from icefall_pathways.torch_compat import export_by_tracing

#: Version of the ONNX operators: the newest that torch 1.13.1 exports, with layer normalization as one operator.
OPSET = 17
#: Number of streams in example inputs: a size of 1 would become a constant of the graph.
EXAMPLE_STREAMS = 3


@torch.inference_mode(False)
@torch.no_grad()
def export_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic_axes: Mapping[str, int],
    fold_constants: bool = True,
) -> bytes:
    """Return the serialized ONNX graph of a module.

    Args:
      module: The module, in eval mode and on a CPU. It takes the inputs in their order, and returns a tensor per
        output. Parameters that it uses are constants of the graph.
      inputs: Example tensors by the names of the graph's inputs. No dynamic axis has size 1.
      outputs: Names of the graph's outputs.
      dynamic_axes: The axis with the streams of each input and output that has one. All other sizes are constants.
      fold_constants: Replace operations on constants by their results. Otherwise, parameters keep their names.
    """
    file = io.BytesIO()
    export_by_tracing(
        module,
        tuple(inputs.values()),
        file,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: {axis: "N"} for name, axis in dynamic_axes.items()},
        opset_version=OPSET,
        do_constant_folding=fold_constants,
    )
    return file.getvalue()


def with_metadata(graph: bytes, metadata: Mapping[str, object]) -> bytes:
    """Return a serialized graph with metadata, which runtimes read as strings."""
    import onnx  # late: most commands import this module and export nothing

    model = onnx.load_from_string(graph)
    onnx.helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    serialized: bytes = model.SerializeToString()
    return serialized


def write_graphs(graphs: Iterable[tuple[Path, bytes]]) -> None:
    """Write serialized graphs to files, each atomically."""
    for path, graph in graphs:
        with atomic_write(path) as temporary:
            temporary.write_bytes(graph)


def without_values(graph: bytes, names: Collection[str]) -> bytes:
    """Return a serialized graph without the values of some of its constants.

    A session gets them by `SessionOptions.add_external_initializers`.

    Raises:
      ValueError: The graph lacks one of the constants.
    """
    import onnx  # late, as above

    model = onnx.load_from_string(graph)
    constants = {constant.name: constant for constant in model.graph.initializer}
    if missing := [name for name in names if name not in constants]:
        raise ValueError(f"the graph has no constant {missing[0]}: expected one for each of {len(names)} parameters")
    for name in names:
        constants[name].ClearField("raw_data")
        constants[name].data_location = onnx.TensorProto.EXTERNAL
        constants[name].external_data.add(key="location", value="none")  # required, and not read
    serialized: bytes = model.SerializeToString()
    return serialized


class WeightsAsInputs(nn.Module):
    """A module whose last inputs replace parameters.

    Args:
      module: The module; it takes tensors.
      owner: The module that has the parameters: `module` or a part of it.
      names: Names of the parameters in `owner`.
    """

    def __init__(self, module: nn.Module, owner: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        self.module = module
        paths = [name.rpartition(".") for name in names]
        self.attributes = [(owner.get_submodule(path), name) for path, _, name in paths]

    def forward(self, *tensors: Tensor) -> Any:
        """Return the output for the first tensors, with the last ones in place of the parameters."""
        count = len(tensors) - len(self.attributes)
        for (owner, name), weight in zip(self.attributes, tensors[count:], strict=True):
            vars(owner)[name] = weight  # Python finds it before the registered parameter
        try:
            return self.module(*tensors[:count])
        finally:
            for owner, name in self.attributes:
                del vars(owner)[name]
