"""ONNX graphs with the pathways of all languages, where the language of each stream is an input.

Such a graph stores one bit per weight, whether a language uses it, and for those in use the value and one bit per
language. It expands them to whole matrices and masks when it is loaded: the expansion depends on constants only, so
ONNX Runtime computes it once. A loop over the languages in the batch selects the streams of a language, multiplies its
masks and the weights, and runs the graph of a single language.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from icefall_pathways.export.onnx import OPSET, WeightsAsInputs, export_onnx
from icefall_pathways.export.packed_weights import pack_weights
from icefall_pathways.export.precision import Precision
from icefall_pathways.pathways.masks import PathwayMasks

#: Name of the input with the index of each stream's language.
LANGUAGE = "language"

_CHECK = "language_has_to_be_an_index_of_the_languages"
_BODY = "body/"  # prefix of names in the graph of a single language


class Step(NamedTuple):
    """A function of one chunk, or one token, of every stream.

    Attributes:
      module: Computes the outputs from the inputs, in their order; in eval mode and on a CPU.
      owner: `module` or the part of it with the masked parameters.
      inputs: Example tensors by name, for more than one stream.
      outputs: Names of the outputs.
      axes: The axis with the streams of each input and output.
      values: Values (L, ...) of parameters of `owner` without masks in each language, in the order of the masks.
    """

    module: nn.Module
    owner: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, int]
    values: Mapping[str, Tensor] = {}


@torch.no_grad()
def multilingual_graph(
    step: Step, masks: PathwayMasks, precision: Precision = "float32", language: str = LANGUAGE
) -> bytes:
    """Return the serialized ONNX graph of a step for streams of any languages.

    Its inputs are those of the step and `language` (N,) int64: the index of each stream's language in
    `masks.languages`. Running it fails if an index is out of range.

    Args:
      step: The step; its parameters have the values of the model, without masks.
      masks: Masks of parameters of `step.owner`, on a CPU; empty if no mask covers the step.
      precision: float32 or float16, in which weights are stored; the computation is in float32.
      language: Name of the input with the languages, which may be an input of the step.

    Raises:
      ValueError: A weight is not finite in this precision: the product with a mask would not be zero.
    """
    weights = {name: step.owner.get_parameter(name).detach() for name in masks.names}
    parameters = weights | {name: values[0] for name, values in step.values.items()}
    module = WeightsAsInputs(step.module, step.owner, parameters).eval()
    axes = {name: step.axes[name] for name in [*step.inputs, *step.outputs]}
    model = onnx.load_from_string(export_onnx(module, {**step.inputs, **parameters}, step.outputs, axes))
    if precision == "float16":
        _store_as_float16(model.graph)
    inputs = [_stream_value(name, tensor, step.axes[name]) for name, tensor in step.inputs.items()]
    if language not in step.inputs:
        inputs.append(helper.make_tensor_value_info(language, TensorProto.INT64, ["N"]))
    if weights:
        examples = module(*step.inputs.values(), *parameters.values())
        outputs = dict(zip(step.outputs, examples if isinstance(examples, tuple) else (examples,), strict=True))
        nodes, constants = _expanded_weights(weights, masks, precision)
        constants += _initializers({f"values/{name}": values.numpy() for name, values in step.values.items()})
        loop_nodes, loop_constants = _loop(model, step, inputs, outputs, masks, language)
        graph = helper.make_graph(
            [*nodes, *loop_nodes],
            "multilingual",
            inputs,
            [_stream_value(name, tensor, step.axes[name]) for name, tensor in outputs.items()],
            [*constants, *loop_constants],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=model.ir_version)
    else:
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def _expanded_weights(
    weights: Mapping[str, Tensor], masks: PathwayMasks, precision: Precision
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return nodes that compute `weight/NAME` and `mask/NAME` (L, ...) of each weight, and their constants."""
    flat = torch.stack([masks.flat_mask(weights, language) for language in masks.languages])
    used = flat.any(dim=0)
    values = pack_weights(weights, masks.codes, precision)["values"]
    sizes = [weight.numel() for weight in weights.values()]
    sizes.append(-sum(sizes) % 8)  # bits that complete the last byte
    constants = {
        "packed_used": _pack_bits(used),
        "packed_masks": _pack_bits(F.pad(flat[:, used], (1, 0))),  # position 0 is in no mask
        "packed_weights": F.pad(values, (1, 0)).numpy(),
        "bit_positions": np.arange(8, dtype=np.uint8),
        "highest_bit": np.array(7, np.uint8),
        "flat_shape": np.array([-1]),
        "masks_shape": np.array([len(masks.languages), -1]),
        "axis_0": np.array([0]),
        "first": np.array(0),
        "sizes": np.array(sizes),
        **{f"shape/{name}": np.array(weight.shape) for name, weight in weights.items()},
        **{f"mask_shape/{name}": np.array([len(masks.languages), *weight.shape]) for name, weight in weights.items()},
    }
    node = helper.make_node
    nodes = [
        *_unpack_bits("used", "flat_shape"),
        *_unpack_bits("masks", "masks_shape"),
        node("Cast", ["used"], ["is_used"], to=TensorProto.INT32),
        node("CumSum", ["is_used", "first"], ["num_used"]),
        node("Mul", ["num_used", "is_used"], ["position"]),  # 0 if no language uses the weight
        node("Cast", ["packed_weights"], ["used_weights"], to=TensorProto.FLOAT),
        node("Gather", ["used_weights", "position"], ["flat_weights"]),
        node("Gather", ["masks", "position"], ["flat_masks"], axis=1),
        node("Split", ["flat_weights", "sizes"], [*(f"flat_weight/{name}" for name in weights), "unused_weights"]),
        node("Split", ["flat_masks", "sizes"], [*(f"flat_mask/{name}" for name in weights), "unused_masks"], axis=1),
    ]
    for name in weights:
        nodes.append(node("Reshape", [f"flat_weight/{name}", f"shape/{name}"], [f"weight/{name}"]))
        nodes.append(node("Reshape", [f"flat_mask/{name}", f"mask_shape/{name}"], [f"mask/{name}"]))
    return nodes, _initializers(constants)


def _pack_bits(bits: Tensor) -> np.ndarray:
    """Return the bits (..., n) packed into bytes (..., ceil(n / 8), 1), from the lowest bit of each byte."""
    return np.packbits(bits.numpy(), axis=-1, bitorder="little")[..., None]


def _unpack_bits(name: str, shape: str) -> list[NodeProto]:
    """Return nodes that unpack the constant `packed_NAME` of `_pack_bits` into Booleans `NAME`."""
    return [
        helper.make_node("BitShift", [f"packed_{name}", "bit_positions"], [f"{name}/shifted"], direction="RIGHT"),
        # Drops the other bits.
        helper.make_node("BitShift", [f"{name}/shifted", "highest_bit"], [f"{name}/bits"], direction="LEFT"),
        helper.make_node("Cast", [f"{name}/bits"], [f"{name}/booleans"], to=TensorProto.BOOL),
        helper.make_node("Reshape", [f"{name}/booleans", shape], [name]),
    ]


def _loop(
    model: onnx.ModelProto,
    step: Step,
    inputs: Iterable[ValueInfoProto],
    outputs: Mapping[str, Tensor],
    masks: PathwayMasks,
    language: str,
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return nodes that run `model`, the graph of a single language, once per language in the batch, and constants."""
    node, grouped, axes = helper.make_node, ["row", *outputs], step.axes
    empty = {name: tensor.narrow(axes[name], 0, 0).numpy() for name, tensor in outputs.items()}
    constants = {
        "num_languages": np.array(len(masks.languages)),
        "languages": np.arange(len(masks.languages)),
        "index_0": np.array(0),
        "index_1": np.array(1),
        "empty/row": np.zeros(0, np.int64),
        **{f"empty/{name}": value for name, value in empty.items()},
    }
    body = _body(model, step, [value.name for value in inputs], outputs, masks)
    nodes = [
        # Gather fails for an index that is too large, with the name of the node; a negative one is made too large.
        node("Less", [language, "index_0"], ["is_negative"]),
        node("Where", ["is_negative", "num_languages", language], ["language_or_too_large"]),
        node("Gather", ["languages", "language_or_too_large"], ["checked_language"], name=_CHECK),
        node("Unique", ["checked_language"], ["present"]),
        node("Size", ["present"], ["num_present"]),
        node(
            "Loop",
            ["num_present", "", *(f"empty/{name}" for name in grouped)],
            [f"grouped/{name}" for name in grouped],
            body=body,
        ),
        # The inverse permutation restores the order of the streams.
        node("Size", [language], ["num_streams"]),
        node("Range", ["index_0", "num_streams", "index_1"], ["positions"]),
        node("ScatterElements", ["grouped/row", "grouped/row", "positions"], ["order"]),
        *(node("Gather", [f"grouped/{name}", "order"], [name], axis=axes[name]) for name in outputs),
    ]
    return nodes, _initializers(constants)


def _body(
    model: onnx.ModelProto,
    step: Step,
    inputs: Sequence[str],
    outputs: Mapping[str, Tensor],
    masks: PathwayMasks,
) -> onnx.GraphProto:
    """Return the body of the loop: append the outputs for the streams of one language to those of earlier ones."""
    node, single, axes = helper.make_node, model.graph, step.axes
    used = {value.name for value in single.input}
    _rename(single, {name: _BODY + name for name in (*used, *outputs)})
    nodes = [
        node("Identity", ["continue"], ["still_continue"]),
        node("Gather", ["present", "iteration"], ["current"]),
        node("Equal", ["checked_language", "current"], ["is_current"]),
        node("NonZero", ["is_current"], ["rows_2d"]),
        node("Squeeze", ["rows_2d", "axis_0"], ["rows"]),
        node("Concat", ["previous/row", "rows"], ["next/row"], axis=0),
    ]
    for name in inputs:
        if name in used:
            nodes.append(node("Gather", [name, "rows"], [_BODY + name], axis=axes[name]))
    for name in masks.names:
        nodes.append(node("Gather", [f"mask/{name}", "current"], [f"current_mask/{name}"]))
        nodes.append(node("Cast", [f"current_mask/{name}"], [f"factor/{name}"], to=TensorProto.FLOAT))
        nodes.append(node("Mul", [f"factor/{name}", f"weight/{name}"], [_BODY + name]))  # Where takes twice the time
    for name in step.values:
        nodes.append(node("Gather", [f"values/{name}", "current"], [_BODY + name]))
    nodes += single.node
    for name in outputs:
        nodes.append(node("Concat", [f"previous/{name}", _BODY + name], [f"next/{name}"], axis=axes[name]))
    types = {"row": TensorProto.INT64} | {name: _onnx_type(tensor) for name, tensor in outputs.items()}
    value = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "streams_of_one_language",
        [
            value("iteration", TensorProto.INT64, []),
            value("continue", TensorProto.BOOL, []),
            *(value(f"previous/{name}", dtype, None) for name, dtype in types.items()),
        ],
        [
            value("still_continue", TensorProto.BOOL, []),
            *(value(f"next/{name}", dtype, None) for name, dtype in types.items()),
        ],
        single.initializer,
    )


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values by `names`, and all others to short names: those of the exporter are a third of a small graph."""
    names[""] = ""  # an optional input that is absent
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.name = names.setdefault(value.name, f"{_BODY}{len(names)}")
    for node in graph.node:
        node.name = ""
        for edges in (node.input, node.output):
            edges[:] = [names.setdefault(name, f"{_BODY}{len(names)}") for name in edges]


def _store_as_float16(graph: onnx.GraphProto) -> None:
    """Store constant matrices and kernels in float16; nodes that convert them to float32 come first."""
    casts = []
    for constant in graph.initializer:
        if constant.data_type == TensorProto.FLOAT and len(constant.dims) > 1:
            name, values = constant.name, torch.from_numpy(numpy_helper.to_array(constant).copy())
            half = pack_weights({name: values}, {}, "float16")["values"].view(values.shape).numpy()
            constant.CopyFrom(numpy_helper.from_array(half, f"{name}/float16"))
            casts.append(helper.make_node("Cast", [constant.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _stream_value(name: str, example: Tensor, axis: int) -> ValueInfoProto:
    sizes = ["N" if index == axis else size for index, size in enumerate(example.shape)]
    return helper.make_tensor_value_info(name, _onnx_type(example), sizes)


def _onnx_type(tensor: Tensor) -> int:
    return int(helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype))


def _initializers(values: Mapping[str, np.ndarray]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
