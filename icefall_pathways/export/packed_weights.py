"""Weights of a package: entries that no language uses are omitted, and the others stored in one of three precisions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from icefall_pathways.export.precision import Precision
from icefall_pathways.pathways.finite import check_finite

_INT8_MAX = 127


def pack_weights(weights: Mapping[str, Tensor], codes: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Concatenate the used entries of all weights.

    Args:
      weights: Floating-point tensors by name.
      codes: Codes of the masked ones; entries with code 0 are omitted.
      precision: int8 applies to tensors of two or more axes, with one scale per index of the first; others are float16.

    Returns:
      `values` (float32 or float16), and for int8 also `quantized` (int8) and `scales` (float32).

    Raises:
      ValueError: A used weight is not finite, or too large for this precision.
    """
    try:
        check_finite(weights, codes)
    except ValueError as error:
        raise ValueError(f"{error}: export another checkpoint") from error
    parts: dict[str, list[Tensor]] = {name: [] for name in _dtypes(precision)}
    for name, weight in weights.items():
        used = weight.flatten() if name not in codes else weight[codes[name] != 0]
        if precision == "int8" and weight.dim() > 1:
            kept = weight.masked_fill(codes[name] == 0, 0) if name in codes else weight  # others may be NaN
            scales = kept.flatten(1).abs().amax(dim=1) / _INT8_MAX
            _check_range(name, scales, precision)
            steps = used / _row_scales(scales, weight.shape, codes.get(name)).clamp(min=torch.finfo(torch.float32).tiny)
            parts["quantized"].append(steps.round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8))
            parts["scales"].append(scales)
            continue
        converted = used.to(_dtypes(precision)["values"])
        _check_range(name, converted, precision)
        parts["values"].append(converted)
    return {
        name: torch.cat(parts[name]) if parts[name] else torch.empty(0, dtype=dtype)
        for name, dtype in _dtypes(precision).items()
    }


def unpack_weights(
    packed: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], codes: Mapping[str, Tensor], precision: Precision
) -> dict[str, Tensor]:
    """Return the weights (float32) with zeros for omitted entries; the inverse of `pack_weights`.

    Raises:
      ValueError: The packed tensors have other types or lengths than the shapes and codes need.
    """
    for name, dtype in _dtypes(precision).items():
        if packed[name].dtype != dtype or packed[name].dim() != 1:
            raise ValueError(f"{name} is {packed[name].dtype} of shape {tuple(packed[name].shape)}: expected {dtype}")
    readers = {name: _Reader(name, tensor) for name, tensor in packed.items() if name in _dtypes(precision)}
    weights = {}
    for name, shape in shapes.items():
        code = codes.get(name)
        count = shape.numel() if code is None else int(torch.count_nonzero(code))
        if precision == "int8" and len(shape) > 1:
            scales = readers["scales"].read(shape[0])
            used = readers["quantized"].read(count).float() * _row_scales(scales, shape, code)
        else:
            used = readers["values"].read(count).float()
        if code is None:
            weights[name] = used.view(shape).clone()
        else:
            weights[name] = torch.zeros(shape)
            weights[name][code != 0] = used
    for reader in readers.values():
        reader.check_end()
    return weights


def _dtypes(precision: Precision) -> dict[str, torch.dtype]:
    """Return the packed tensors and their types."""
    if precision == "int8":
        return {"values": torch.float16, "quantized": torch.int8, "scales": torch.float32}
    return {"values": torch.float32 if precision == "float32" else torch.float16}


def _row_scales(scales: Tensor, shape: torch.Size, code: Tensor | None) -> Tensor:
    """Return the scale of each used entry."""
    rows = scales.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    return rows.flatten() if code is None else rows[code != 0]


def _check_range(name: str, values: Tensor, precision: Precision) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} has values that are too large for {precision}: export it with --precisions float32")


class _Reader:
    """Consecutive pieces of a tensor (n,)."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor, self._position = name, tensor, 0

    def read(self, count: int) -> Tensor:
        end = self._position + count
        if end > len(self._tensor):
            raise ValueError(f"{self._name} has {len(self._tensor)} entries: expected at least {end}")
        piece, self._position = self._tensor[self._position : end], end
        return piece

    def check_end(self) -> None:
        if self._position != len(self._tensor):
            raise ValueError(f"{self._name} has {len(self._tensor)} entries: expected {self._position}")
