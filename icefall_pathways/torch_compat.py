"""API that differs between torch 1.13.1 and the current version, under one name for both."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

# torch 2.4 made the functions of autocast depend on the device type; before, the CPU had functions of its own.
_AUTOCAST_PER_DEVICE = hasattr(torch, "get_autocast_dtype")


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
