"""Read weights from untrusted files without executing code.

Three formats are supported: icefall checkpoints (a pickled dict with the weights under `model` or `model_avg`), bare
state dicts, and safetensors. A pickle is a program that can call any function. The unpickler of this module resolves
only the functions that rebuild tensors. Other objects of an icefall checkpoint (optimizer and sampler states, NumPy
arrays, paths) become empty placeholders, and any object that does not belong in such a checkpoint is an error. Only the
requested weights become tensors, directly from the bytes of the file.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from icefall_pathways.errors import MAX_REASON, first_line

StateDict = dict[str, Tensor]

#: Keys of the weights in an icefall checkpoint, and of their running average.
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

# Packages whose objects occur in icefall checkpoints; all of these objects become placeholders.
_KNOWN_PACKAGES = ("argparse", "collections", "datetime", "icefall", "lhotse", "numpy", "pathlib", "torch")
_KNOWN_CLASSES = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set"),
    *("slice", "str", "tuple"),
    *("long", "unicode", "xrange"),  # Python 2
)
_KNOWN_NAMES = {
    ("_codecs", "encode"),  # used by pickled bytes
    ("copyreg", "_reconstructor"),  # used by pickled objects
    *(("builtins", name) for name in _KNOWN_CLASSES),
}
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # older pickles use the names of Python 2

_EXPECTED = "expected an icefall checkpoint, a state dict saved by torch.save, or a .safetensors file"


class ForeignCheckpointError(ValueError):
    """A file from another project cannot be read, or is not safe to read."""


@dataclass(frozen=True)
class _Storage:
    """Location of the data of one or more tensors in the file."""

    record: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _TensorView:
    """A tensor in the file: a view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Placeholder:
    """Replacement for objects other than tensors, numbers, strings and containers; its methods have no effect."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None:
        """Ignore an item, as if this were a list."""

    def extend(self, values: Any) -> None:
        """Ignore an item, as if this were a list."""

    def add(self, value: Any) -> None:
        """Ignore an item, as if this were a set."""


def read_weights(path: Path, key: str | None = None) -> StateDict:
    """Read the weights in a file, on the CPU.

    Args:
      path: The file.
      key: One of `WEIGHT_KEYS`, for an icefall checkpoint; None: the first key that exists.

    Raises:
      ForeignCheckpointError: The file is missing or damaged, contains anything but plain tensors among the weights, or
        contains objects that do not belong in such a file.
    """
    if not path.is_file():
        raise ForeignCheckpointError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ForeignCheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    with _open_archive(path) as archive:
        return _read_tensors(path, archive, _select_weights(path, _unpickle(path, archive), key))


def is_foreign(path: Path) -> bool:
    """Return True if a file is not a checkpoint of this project. A folder is never foreign.

    Raises:
      ForeignCheckpointError: The file is missing, or contains objects that do not belong in a checkpoint.
    """
    if path.is_dir():
        return False
    if not path.is_file():
        raise ForeignCheckpointError(f"there is no file {path}")
    if not zipfile.is_zipfile(path):
        return path.suffix == ".safetensors"
    content = read_structure(path)
    return not (isinstance(content, dict) and "plain" in content)


def read_structure(path: Path) -> Any:
    """Read the pickled object of a torch archive with placeholders for its tensors, without reading tensor data.

    Raises:
      ForeignCheckpointError: The file is damaged, or contains objects that do not belong in a checkpoint.
    """
    with _open_archive(path) as archive:
        return _unpickle(path, archive)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; errors of reading it inside the context are reported as damage."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except ForeignCheckpointError:
        raise
    except Exception as error:  # damaged archives cause exceptions of many types
        raise ForeignCheckpointError(
            f"cannot read {path} ({path.stat().st_size} bytes): {first_line(error)[:MAX_REASON]}. It is damaged, or "
            f"was written by a torch before 1.6; {_EXPECTED}"
        ) from error


def _unpickle(path: Path, archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl" and name.count("/") == 1]
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    if len(pickles) != 1 or compressed or any(name.endswith(("/constants.pkl", ".py")) for name in names):
        raise ForeignCheckpointError(f"{path} is an archive of another kind (TorchScript?): {_EXPECTED}")
    folder = pickles[0].partition("/")[0]
    byte_order = f"{folder}/byteorder"
    if byte_order in names and archive.read(byte_order) != b"little":
        raise ForeignCheckpointError(
            f"{path} was written on a big-endian machine: save it again on a little-endian machine"
        )
    file = io.BytesIO(archive.read(pickles[0]))  # of the whole record, so that its checksum is compared
    try:
        return _Unpickler(file, path, folder).load()
    except ForeignCheckpointError:
        raise
    except Exception as error:  # a malformed pickle can raise anything
        raise ForeignCheckpointError(f"{path} is damaged: its pickle cannot be read ({error!r})") from error


class _Unpickler(pickle.Unpickler):
    """Unpickle without importing or calling anything that the pickle names."""

    def __init__(self, file: Any, path: Path, folder: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a global of the pickle.

        Raises:
          ForeignCheckpointError: The global does not belong in an icefall checkpoint.
        """
        module = _OLD_NAMES.get(module, module)
        # A pickle can modify the objects that it gets: return none that is used elsewhere.
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild_tensor(*arguments)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        if module.partition(".")[0] in _KNOWN_PACKAGES or (module, name) in _KNOWN_NAMES:
            return type("Placeholder", (_Placeholder,), {})
        raise ForeignCheckpointError(
            f"{self._path} calls {module}.{name} when it is unpickled: this does not belong in an icefall "
            "checkpoint, and was not executed. Do not trust this file"
        )

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that a tensor refers to."""
        _, dtype, record, _, numel = pid
        if not isinstance(dtype, torch.dtype):
            return _Placeholder()
        return _Storage(f"{self._folder}/data/{record}", dtype, int(numel))


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        return _Placeholder()
    return _TensorView(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _select_weights(path: Path, content: Any, key: str | None) -> dict[str, _TensorView]:
    """Select the weights in the content of a checkpoint."""
    if not isinstance(content, dict):
        raise ForeignCheckpointError(f"{path} contains {_kind(content)}: {_EXPECTED}")
    keys = [name for name in WEIGHT_KEYS if isinstance(content.get(name), dict)]
    if keys or key is not None:
        key = keys[0] if key is None else key
        if key not in keys:
            raise ForeignCheckpointError(
                f"{path} has no weights under {key!r}: it has {', '.join(map(str, content)) or 'nothing'}"
            )
        content = content[key]
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, _TensorView):
            raise ForeignCheckpointError(
                f"{path} has {_kind(value)} under {name!r}, expected a plain tensor: {_EXPECTED}"
            )
    if not content:
        raise ForeignCheckpointError(f"{path} contains no tensors: {_EXPECTED}")
    return dict(content)


def _kind(value: Any) -> str:
    return "an object of another program" if isinstance(value, _Placeholder) else f"a {type(value).__name__}"


def _read_tensors(path: Path, archive: zipfile.ZipFile, views: dict[str, _TensorView]) -> StateDict:
    storages: dict[_Storage, Tensor] = {}
    tensors = {}
    for name, view in views.items():
        try:
            if view.storage not in storages:
                storages[view.storage] = _read_storage(archive, view.storage)
            if math.prod(view.size) > view.storage.numel:
                raise ValueError("it is larger than its storage")
            # torch checks that size, stride and offset stay within the storage.
            tensors[name] = storages[view.storage].as_strided(view.size, view.stride, view.offset).clone()
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise ForeignCheckpointError(f"{path} is damaged: {name} cannot be read ({error})") from error
    return tensors


def _read_storage(archive: zipfile.ZipFile, storage: _Storage) -> Tensor:
    size = torch.empty(0, dtype=storage.dtype).element_size()
    data = bytearray(archive.read(storage.record))
    if len(data) < storage.numel * size:
        raise ValueError(f"its storage has {len(data)} bytes, expected {storage.numel} elements of {size} bytes")
    if not data:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(data, dtype=storage.dtype, count=storage.numel)
