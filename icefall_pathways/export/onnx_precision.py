"""Conversion of serialized ONNX graphs to another precision."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from icefall_pathways.export.precision import Precision


def convert(graph: bytes, precision: Precision) -> bytes:
    """Return a serialized graph with another precision.

    float16 applies to all operators. int8 applies to the weights of matrix products, one scale per matrix, and their
    inputs are quantized at run time; all else stays float32.
    """
    if precision == "float32":
        return graph
    return _to_float16(graph) if precision == "float16" else _to_int8(graph)


def _to_float16(graph: bytes) -> bytes:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # imports much, and only this needs it

    converted = convert_float_to_float16(onnx.load_from_string(graph), keep_io_types=True)
    serialized: bytes = converted.SerializeToString()
    return serialized


def _to_int8(graph: bytes) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it recommends a preprocessing that changes the names of inputs
        try:
            quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
        finally:
            logging.disable(previous)
        return target.read_bytes()
