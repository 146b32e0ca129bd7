"""Weights out of files that others made, without running anything that the files say.

Three kinds are read: checkpoints of icefall (a pickled dict with the weights under `model` or `model_avg`, among much
else), bare state dicts, and safetensors. A pickle is a program that may call any function; here it is read with one in
which no function exists but those that put tensors together. What else a checkpoint of icefall holds (states of
optimizer and sampler, numpy's numbers, paths) becomes an empty stand-in, and anything that has no place in one stops
the reading. Tensors are made only of the weights that are asked for, straight from the file's bytes.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

StateDict = dict[str, Tensor]

#: Where a checkpoint of icefall has its weights, and their average over the training.
WEIGHT_KEYS = ("model", "model_avg")

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Whose objects are found in checkpoints of icefall: all of them become stand-ins.
_KNOWN_PACKAGES = ("argparse", "collections", "datetime", "icefall", "lhotse", "numpy", "pathlib", "torch")
_KNOWN_CLASSES = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set"),
    *("slice", "str", "tuple"),
    *("long", "unicode", "xrange"),  # Python 2's
)
_KNOWN_NAMES = {
    ("_codecs", "encode"),  # how bytes are pickled
    ("copyreg", "_reconstructor"),  # how objects are
    *(("builtins", name) for name in _KNOWN_CLASSES),
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's, which are what older pickles say

_ALTERNATIVES = "expected a checkpoint of icefall, a state dict saved by torch.save, or a .safetensors file"


class ForeignCheckpointError(ValueError):
    """A file from elsewhere that cannot be read, or must not be."""


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of some tensors are in the file."""

    record: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Stored:
    """A tensor in the file."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _StandIn:
    """In the place of any object that is no tensor, number, string or container: takes everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """As a list's."""

    def extend(self, values: Any) -> None:
        """As a list's."""

    def add(self, value: Any) -> None:
        """As a set's."""


def read_weights(path: Path, key: str | None = None) -> StateDict:
    """The weights in a file, on the CPU.

    Args:
      path: The file.
      key: Which of `WEIGHT_KEYS` of a checkpoint of icefall; None: the first that there is.

    Raises:
      ForeignCheckpointError: The file is missing, damaged, or holds something else than plain tensors where the weights
        should be, or anything that no such file holds.
    """
    if not path.is_file():
        raise ForeignCheckpointError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ForeignCheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    try:
        with zipfile.ZipFile(path) as archive:
            return _tensors(path, archive, _weights(path, _unpickle(path, archive), key))
    except (zipfile.BadZipFile, OSError, KeyError, EOFError) as error:
        raise ForeignCheckpointError(
            f"cannot read {path} ({path.stat().st_size} bytes): {error}. It is damaged, or was written by a torch "
            f"before 1.6; {_ALTERNATIVES}"
        ) from error


def is_foreign(path: Path) -> bool:
    """Whether a file is none of this project's own checkpoints; a folder is never foreign.

    Raises:
      ForeignCheckpointError: The file is missing, or a pickle with something that no checkpoint holds.
    """
    if path.is_dir():
        return False
    if not path.is_file():
        raise ForeignCheckpointError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        return path.suffix == ".safetensors"
    with zipfile.ZipFile(path) as archive:
        content = _unpickle(path, archive)
    return not (isinstance(content, dict) and "plain" in content)


def _unpickle(path: Path, archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl" and name.count("/") == 1]
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if len(pickles) != 1 or packed or any(name.endswith(("/constants.pkl", ".py")) for name in names):
        raise ForeignCheckpointError(f"{path} is an archive of something else (TorchScript?): {_ALTERNATIVES}")
    folder = pickles[0].partition("/")[0]
    byte_order = f"{folder}/byteorder"
    if byte_order in names and archive.read(byte_order) != b"little":
        raise ForeignCheckpointError(f"{path} was written on a big-endian machine: save it again on another")
    with archive.open(pickles[0]) as file:
        try:
            return _Unpickler(file, path, folder).load()
        except ForeignCheckpointError:
            raise
        except Exception as error:  # whatever a malformed program stumbles over
            raise ForeignCheckpointError(f"{path} is damaged: its pickle cannot be read ({error!r})") from error


class _Unpickler(pickle.Unpickler):
    """Reads a pickle without importing anything or calling anything that it names."""

    def __init__(self, file: Any, path: Path, folder: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global of the pickle.

        Raises:
          ForeignCheckpointError: No checkpoint of icefall has such a thing.
        """
        module = _OLD_NAMES.get(module, module)
        # What a pickle gets it may also change: nothing of it must be in use elsewhere.
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild_tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module.partition(".")[0] in _KNOWN_PACKAGES or (module, name) in _KNOWN_NAMES:
            return type("StandIn", (_StandIn,), {})
        raise ForeignCheckpointError(
            f"{self._path} wants to call {module}.{name} when it is read: that is no part of a checkpoint of icefall, "
            "and nothing of it was run. Do not trust this file"
        )

    def persistent_load(self, pid: Any) -> Any:
        """A reference to numbers in the file."""
        _, dtype, record, _, numel = pid
        if not isinstance(dtype, torch.dtype):
            return _StandIn()
        return _Storage(f"{self._folder}/data/{record}", dtype, int(numel))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        return _StandIn()
    return _Stored(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _weights(path: Path, content: Any, key: str | None) -> dict[str, _Stored]:
    """The part of a checkpoint that is the weights."""
    if not isinstance(content, dict):
        raise ForeignCheckpointError(f"{path} holds {_kind(content)}: {_ALTERNATIVES}")
    here = [name for name in WEIGHT_KEYS if isinstance(content.get(name), dict)]
    if here or key is not None:
        key = here[0] if key is None else key
        if key not in here:
            raise ForeignCheckpointError(
                f"{path} has no weights under {key!r}: it has {', '.join(map(str, content)) or 'nothing'}"
            )
        content = content[key]
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _Stored):
            raise ForeignCheckpointError(
                f"{path} has {_kind(value)} under {name!r}, where a plain tensor should be: {_ALTERNATIVES}"
            )
    if not content:
        raise ForeignCheckpointError(f"{path} holds no tensors: {_ALTERNATIVES}")
    return dict(content)


def _kind(value: Any) -> str:
    return "an object of another program" if isinstance(value, _StandIn) else f"a {type(value).__name__}"


def _tensors(path: Path, archive: zipfile.ZipFile, stored: dict[str, _Stored]) -> StateDict:
    numbers: dict[_Storage, Tensor] = {}
    tensors = {}
    for name, value in stored.items():
        try:
            if value.storage not in numbers:
                numbers[value.storage] = _numbers(archive, value.storage)
            if math.prod(value.size) > value.storage.numel:
                raise ValueError("it is larger than what is stored for it")
            # torch checks that size, stride and offset stay within the numbers.
            tensors[name] = numbers[value.storage].as_strided(value.size, value.stride, value.offset).clone()
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise ForeignCheckpointError(f"{path} is damaged: {name} cannot be read ({error})") from error
    return tensors


def _numbers(archive: zipfile.ZipFile, storage: _Storage) -> Tensor:
    size = torch.empty(0, dtype=storage.dtype).element_size()
    data = bytearray(archive.read(storage.record))
    if len(data) < storage.numel * size:
        raise ValueError(f"{len(data)} bytes are stored for {storage.numel} numbers of {size} bytes")
    if not data:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(data, dtype=storage.dtype, count=storage.numel)
