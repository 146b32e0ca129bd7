"""Entropy coding of mask codes by asymmetric numeral systems (the library constriction)."""

from collections.abc import Sequence

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MAX_COUNT = 2**15 - 1  # frequencies are stored as int16
_TABLE_ENTRY_BITS = 16
_CODED_TYPES = {"words": torch.int32, "alphabet": torch.int64, "counts": torch.int16}


def encode_codes(codes: Sequence[Tensor]) -> dict[str, Tensor]:
    """Encode integer tensors.

    Every tensor has a table with the frequencies of its codes, or all have one, whichever takes less space.

    Returns:
      `words` (int32), the coded entries; `alphabet` (K,) int64, all codes that occur; `counts` (tables, K) int16, their
      frequencies, scaled so that the largest of a table is 32767.
    """
    symbols, alphabet = _symbols(codes)
    own = np.stack([np.bincount(part, minlength=len(alphabet)) for part in symbols])
    joint = own.sum(axis=0, keepdims=True)
    gain = _entropy_bits(joint) - _entropy_bits(own) - own[1:].size * _TABLE_ENTRY_BITS
    counts = _scale(own if gain > 0 else joint)
    coder = constriction.stream.stack.AnsCoder()
    if len(alphabet) > 1:
        for part, model in reversed(list(zip(symbols, _models(counts, len(symbols)), strict=True))):
            coder.encode_reverse(part, model)
    return {
        "words": torch.from_numpy(coder.get_compressed().view(np.int32)),
        "alphabet": alphabet,
        "counts": torch.from_numpy(counts),
    }


def decode_codes(coded: dict[str, Tensor], shapes: Sequence[torch.Size], dtype: torch.dtype) -> list[Tensor]:
    """Decode the result of `encode_codes`.

    Args:
      coded: The result of `encode_codes`.
      shapes: Shapes of the tensors.
      dtype: Their integer type.

    Raises:
      ValueError: The coded tensors are damaged.
    """
    for name, dtype_of_file in _CODED_TYPES.items():
        if coded[name].dtype != dtype_of_file:
            raise ValueError(f"{name} of the codes is {coded[name].dtype}: expected {dtype_of_file}")
    alphabet, counts = coded["alphabet"], coded["counts"].numpy()
    if alphabet.dim() != 1 or counts.shape not in {(1, len(alphabet)), (len(shapes), len(alphabet))}:
        raise ValueError(f"tables of {counts.shape} for {tuple(alphabet.shape)} codes of {len(shapes)} tensors")
    if counts.min(initial=0) < 0 or not counts.any(axis=1).all():
        raise ValueError("a table of frequencies without positive entries")
    values = alphabet.to(dtype)
    if len(alphabet) == 1:
        return [values.expand(shape).clone() for shape in shapes]
    coder = constriction.stream.stack.AnsCoder(coded["words"].numpy().view(np.uint32))
    codes = []
    for shape, model in zip(shapes, _models(counts, len(shapes)), strict=True):
        symbols = torch.from_numpy(coder.decode(model, shape.numel()))
        codes.append(values[symbols.long()].view(shape))
    if not coder.is_empty():
        raise ValueError("the coded entries do not end where the last tensor ends")
    return codes


def entropy_bytes(codes: Sequence[Tensor]) -> float:
    """Return the zeroth-order entropy of the codes in bytes, with the frequencies of each tensor."""
    symbols, alphabet = _symbols(codes)
    return _entropy_bits(np.stack([np.bincount(part, minlength=len(alphabet)) for part in symbols])) / 8


def _symbols(codes: Sequence[Tensor]) -> tuple[list[NDArray[np.int32]], Tensor]:
    """Return the indices of the codes in their alphabet, and the alphabet."""
    alphabet = torch.cat([code.unique() for code in codes]).unique()
    flat = (torch.searchsorted(alphabet, code.flatten()).int().numpy() for code in codes)
    return list(flat), alphabet.long()


def _entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the sum over tables (tables, K) of their number of entries times the entropy."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    logs = np.log2(np.where(counts > 0, counts / total, 1.0))
    return float(-(counts * logs).sum())


def _scale(counts: NDArray[np.int64]) -> NDArray[np.int16]:
    scaled = np.rint(counts * (_MAX_COUNT / counts.max(axis=1, keepdims=True)))
    return np.maximum(scaled, counts > 0).astype(np.int16)


def _models(counts: NDArray[np.int16], num_tensors: int) -> list[object]:
    """Return the distribution of the codes of each tensor."""
    probabilities = (counts / counts.sum(axis=1, keepdims=True, dtype=np.int64)).astype(np.float32)
    models = [constriction.stream.model.Categorical(row, perfect=False) for row in probabilities]
    return models if len(models) == num_tensors else models * num_tensors
