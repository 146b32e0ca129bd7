"""API that differs between torch 1.13.1 and the current version, under one name for both."""

import inspect
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn
from torch.onnx import symbolic_helper

# torch 2.4 made the functions of autocast depend on the device type; before, the CPU had functions of its own.
_AUTOCAST_PER_DEVICE = hasattr(torch, "get_autocast_dtype")
_HAS_DYNAMO_EXPORTER = "dynamo" in inspect.signature(torch.onnx.export).parameters


def cuda_grad_scaler(enabled: bool) -> torch.cuda.amp.GradScaler:
    """Return a loss scaler for CUDA; torch 2.3 moved the class to `torch.amp`."""
    scaler: Any = getattr(torch.amp, "GradScaler", None)
    return torch.cuda.amp.GradScaler(enabled=enabled) if scaler is None else scaler("cuda", enabled=enabled)


def cpu_autocast_dtype() -> torch.dtype | None:
    """Return the dtype of the surrounding `torch.autocast("cpu")`, or None outside of it."""
    api: Any = torch  # the types of torch 1.13.1 lack the newer functions
    if _AUTOCAST_PER_DEVICE:
        return api.get_autocast_dtype("cpu") if api.is_autocast_enabled("cpu") else None
    return api.get_autocast_cpu_dtype() if api.is_autocast_cpu_enabled() else None


def num_storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the memory of tensors in bytes; storage that several tensors share counts once.

    torch 2.0 replaced `Tensor.storage` by `Tensor.untyped_storage`.
    """
    storages = (getattr(tensor, "untyped_storage", tensor.storage)() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def save(value: Any, path: Path) -> None:
    """Write `value` as `torch.save` does.

    If the disk is full, `torch.save` aborts the process in version 1.13.1, and does not say why in later ones.

    Raises:
      OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        recorder = _ErrorRecorder(file)
        torch.save(value, cast(BinaryIO, recorder))
        if recorder.error is not None:
            raise recorder.error


class _ErrorRecorder:
    """A file that ignores everything after the first error of a write, and keeps that error."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


def is_exporting() -> bool:
    """Return True while a module is exported to ONNX, which cannot express loops in Python and operations in place."""
    return torch.onnx.is_in_onnx_export()


def export_by_tracing(module: nn.Module, args: tuple[Tensor, ...], file: Any, **options: Any) -> None:
    """Call `torch.onnx.export` with the exporter that traces the module.

    torch 1.13.1 has no other. torch 2.9 deprecated it in favor of one that torch 1.13.1 lacks.
    """
    if _HAS_DYNAMO_EXPORTER:
        options["dynamo"] = False
    else:
        # The lambda hides the annotations, which torch evaluates as classes.
        unflatten = lambda *values: _unflatten(*values)  # noqa: E731
        torch.onnx.register_custom_op_symbolic("aten::unflatten", unflatten, options["opset_version"])
    with warnings.catch_warnings():
        # Deprecations, and sizes that become constants, as intended for all but the batch size.
        warnings.simplefilter("ignore")
        torch.onnx.export(module, args, file, **options)


@symbolic_helper.parse_args("v", "i", "is")
def _unflatten(g: Any, x: Any, axis: int, sizes: Sequence[int]) -> Any:
    """Return ONNX nodes for `Tensor.unflatten`, which torch 1.13.1 cannot export."""
    rank: Any = symbolic_helper._get_tensor_rank(x)
    axis %= rank

    def constant(*values: int) -> Any:
        return g.op("Constant", value_t=torch.tensor(values, dtype=torch.int64))

    shape = constant(*[0] * axis, *sizes)  # 0: the size of x
    if axis + 1 < rank:
        others = g.op("Slice", g.op("Shape", x), constant(axis + 1), constant(rank))
        shape = g.op("Concat", shape, others, axis_i=0)
    return g.op("Reshape", x, shape)
