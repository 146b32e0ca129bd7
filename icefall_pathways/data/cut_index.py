"""Memory-mapped index of the cuts of manifests: where each cut is, its duration and whether it can be trained on.

An index is a safetensors file with a column per property and a row per cut, in the order of the manifests.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lhotse import CutSet
from lhotse.cut import Cut
from safetensors import safe_open

from icefall_pathways.corpora.path_resolver import PathResolver
from icefall_pathways.data.manifests import DataError, parse_cut
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.usable_cuts import describe_cut
from icefall_pathways.errors import as_damage, first_line
from icefall_pathways.sharding.jsonl import LineReader

#: A row of the index. `file` is the number of the manifest; `member`, `start` and `size` are the position of the cut's
#: line in it, see `LineReader`; `flags` is a `CutFlag`; `weight` is the weight of the cut's corpus.
ROW = np.dtype(
    [
        ("file", np.uint16),
        ("member", np.uint64),
        ("start", np.uint32),
        ("size", np.uint32),
        ("duration", np.float64),
        ("num_tokens", np.uint16),
        ("flags", np.uint8),
        ("weight", np.float32),
    ]
)

METADATA_KEY = "index"  # a single key, since safetensors writes several in random order

_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "F32": np.float32, "F64": np.float64}


class CutIndex:
    """The cuts of manifests by their number; the columns are memory-mapped, and may be shared by processes.

    Args:
      path: The index.
      manifests: The files that its rows refer to.
      folder: Folder of the manifests; those without random access are copied to the folder of the index.

    Attributes:
      path: As given.
      manifests: As given.
      folder: As given.
    """

    def __init__(self, path: Path, manifests: Sequence[Path], folder: Path) -> None:
        self.path = path
        self.manifests = list(manifests)
        self.folder = folder
        self._paths = PathResolver(folder)
        self._readers = [LineReader(manifest) for manifest in manifests]

    def __len__(self) -> int:
        return len(self.durations)

    @property
    def durations(self) -> npt.NDArray[np.float64]:
        """Duration of each cut in seconds."""
        return self._columns["duration"]

    @property
    def flags(self) -> npt.NDArray[np.uint8]:
        """`CutFlag` of each cut."""
        return self._columns["flags"]

    @property
    def num_tokens(self) -> npt.NDArray[np.uint16]:
        """Tokens of each transcript, at most 65535; 0 for cuts without exactly one transcript."""
        return self._columns["num_tokens"]

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """Weight of the corpus of each cut, see `corpora.manifests`."""
        return self._columns["weight"]

    def read(self, numbers: Iterable[int]) -> CutSet:
        """Return cuts, read from the manifests.

        Raises:
          DataError: A manifest has been changed since the index was written, or a cut is not trustworthy.
        """
        return CutSet.from_cuts([self._read(int(i)) for i in numbers])

    def load(self, numbers: Iterable[int]) -> CutSet:
        """Return cuts whose features and audio can be read; see `read`."""
        return self.read(numbers)

    def _read(self, index: int) -> Cut:
        row = {name: int(self._columns[name][index]) for name in ("file", "member", "start", "size")}
        path = self.path
        try:
            path = self.manifests[row["file"]]
            line = self._readers[row["file"]].read(row["member"], row["start"], row["size"])
            return self._paths.resolve(parse_cut(line, path))
        except DataError:
            raise
        except Exception as error:  # damaged records cause exceptions of many types
            raise DataError(
                f"cannot read cut {index} of {path}, at byte {row['member']} ({first_line(error)}): the "
                f"manifest has been changed or damaged since {self.path} was written; remove this index, and run the "
                "same command again, which writes it again"
            ) from error

    @cached_property
    def _columns(self) -> Mapping[str, npt.NDArray[Any]]:
        header, offset = _read_header(self.path)
        columns = {}
        for name, column in header.items():
            (size,), dtype = column["shape"], _DTYPES[column["dtype"]]
            start = offset + column["data_offsets"][0]
            columns[name] = np.memmap(self.path, dtype, "r", start, (size,)) if size else np.zeros(0, dtype)
        return columns

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.manifests, self.folder)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of an index.

    Raises:
      DataError: The file is damaged, truncated or not an index.
    """
    with as_damage(path, DataError, "remove it, and run the same command again"):
        with safe_open(path, "np") as file:  # checks the header, and that the data are complete
            values = json.loads(file.metadata()[METADATA_KEY])
            if set(file.keys()) != set(ROW.names or ()) or not isinstance(values, dict):
                raise ValueError("it does not have the columns of an index")
        return values


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file that `read_metadata` has checked, and the offset of its data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    del header["__metadata__"]
    return header, 8 + length


def index_row(cut: Cut, tokenizer: Tokenizer) -> tuple[float, int, int, float]:
    """Return the duration, the number of tokens, the flags and the weight of a cut."""
    num_tokens, flags = describe_cut(cut, tokenizer)
    return cut.duration, min(num_tokens, 0xFFFF), flags, _weight(cut)


def _weight(cut: Cut) -> float:
    weights = [(supervision.custom or {}).get("weight", 1.0) for supervision in cut.supervisions]
    weight = float(weights[0]) if weights else 1.0
    if not 0 < weight < math.inf:
        raise ValueError(f"cut {cut.id} has the weight {weight}: expected more than 0")
    return weight
