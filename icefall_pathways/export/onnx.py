"""Export of modules to ONNX graphs."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from icefall_pathways.torch_compat import export_by_tracing

#: Version of the ONNX operators: the newest that torch 1.13.1 exports, with layer normalization as one operator.
OPSET = 17


@torch.inference_mode(False)
@torch.no_grad()
def export_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], dynamic_axes: Mapping[str, int]
) -> bytes:
    """Return the serialized ONNX graph of a module.

    Args:
      module: The module, in eval mode and on a CPU. It takes the inputs in their order, and returns a tensor per
        output. Parameters that it uses are constants of the graph.
      inputs: Example tensors by the names of the graph's inputs. No dynamic axis has size 1.
      outputs: Names of the graph's outputs.
      dynamic_axes: The axis with the streams of each input and output that has one. All other sizes are constants.
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
    )
    return file.getvalue()


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
