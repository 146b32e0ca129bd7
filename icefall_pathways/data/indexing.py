"""Build the index of a manifest, or open it if it is up to date."""

import errno
import json
import logging
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tqdm import tqdm

from icefall_pathways.data.cut_index import METADATA_KEY, ROW, CutIndex, index_row, read_metadata
from icefall_pathways.data.manifests import DataError, damaged_manifest, manifest_lines, parse_cut
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.files import atomic_write, exclusive_lock, remembered_sha256
from icefall_pathways.sharding.executors import ExecutionConfig, Workers, open_workers
from icefall_pathways.sharding.jsonl import LargeMembersError, lines_of, read_members, write_lines

logger = logging.getLogger("icefall_pathways")

_VERSION = 3  # of the columns and of the rules that define the flags

_TASK_MEMBERS = 32
_MIN_PARALLEL_BYTES = 8 << 20  # compressed; less is read sooner than processes start

Rows = npt.NDArray[np.void]
_Task = tuple[int, list[tuple[int, bytes]]]  # index of a file, and some of its members with their positions


def open_index(manifests: Sequence[Path], tokenizer: Tokenizer, folder: Path, name: str) -> CutIndex:
    """Return the index of manifests; write it first if it is missing or out of date.

    One process writes it and the others that want it, on any machine, wait.

    Args:
      manifests: The files of one language and split in one folder, in their order; `.jsonl` or `.jsonl.gz`.
      tokenizer: Determines which cuts are usable; each tokenizer has an index of its own.
      folder: Folder of the index, created if necessary.
      name: First part of the name of the index.

    Raises:
      DataError: A manifest is damaged or not trustworthy, or the folder cannot be written.
    """
    path = folder / f"{name}-{tokenizer.model_hash[:12]}.safetensors"
    try:
        identity = _identity(manifests, tokenizer, folder)
        if _is_current(path, identity):
            return CutIndex(path, _readable_files(path, manifests), manifests[0].parent)
        with exclusive_lock(folder / f".{name}.lock", wait=True):
            identity = _identity(manifests, tokenizer, folder)
            if not _is_current(path, identity):
                _write_index(path, manifests, tokenizer, identity)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DataError(
            f"cannot write the index of {manifests[0]} ({error}): pass a folder that can be written with --index-dir"
        ) from error
    return CutIndex(path, _readable_files(path, manifests), manifests[0].parent)


def _identity(manifests: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Return what the content of an index is a function of."""
    hashes = [[path.name, remembered_sha256(path, hash_memory(path, folder))] for path in manifests]
    return {"version": _VERSION, "tokenizer": tokenizer.model_hash, "manifests": hashes}


def hash_memory(manifest: Path, folder: Path) -> Path:
    """Return the file in a folder of indexes that keeps the hash of a manifest, see `remembered_sha256`."""
    return folder / f"{manifest.name}.sha256.json"


def _is_current(path: Path, identity: dict[str, Any]) -> bool:
    try:
        metadata = read_metadata(path)
    except (OSError, ValueError):
        return False
    copies = [path.parent / name for name in metadata.pop("copies", []) if name]
    return metadata == identity and all(copy.exists() for copy in copies)


def _readable_files(path: Path, manifests: Sequence[Path]) -> list[Path]:
    """Return the files that the rows of an index refer to: each manifest, or its copy with random access."""
    copies = read_metadata(path)["copies"]
    return [path.parent / copy if copy else manifest for manifest, copy in zip(manifests, copies, strict=True)]


def _write_index(path: Path, manifests: Sequence[Path], tokenizer: Tokenizer, identity: dict[str, Any]) -> None:
    logger.info("writing the index %s", path)
    copies = [_copy_if_necessary(manifest, path.parent) for manifest in manifests]
    files = [path.parent / copy if copy else manifest for manifest, copy in zip(manifests, copies, strict=True)]
    total = sum(file.stat().st_size for file in files)
    workers = open_workers(ExecutionConfig()) if total >= _MIN_PARALLEL_BYTES else nullcontext(Workers())
    parts = {}
    description = f"indexing {manifests[0].name}"
    with (
        workers as pool,
        tqdm(total=total, desc=description, unit="B", unit_scale=True, leave=False, delay=3) as bar,
    ):
        index_members = partial(_index_members, list(manifests), tokenizer.model_path)
        for position, num_bytes, rows in pool.map(index_members, _tasks(files)):
            parts[position] = rows
            bar.update(num_bytes)
    table = np.concatenate([np.zeros(0, ROW), *(parts[position] for position in sorted(parts))])
    metadata = json.dumps(identity | {"copies": copies})
    with atomic_write(path) as temporary:
        columns = {name: np.ascontiguousarray(table[name]) for name in ROW.names or ()}
        save_file(columns, temporary, {METADATA_KEY: metadata})


def _copy_if_necessary(manifest: Path, folder: Path) -> str:
    """Copy a manifest without random access; return the name of the copy, or "" if the manifest has random access."""
    try:
        if manifest.suffix == ".gz":
            deque(read_members(manifest), maxlen=0)
            return ""
    except LargeMembersError:
        pass
    except (EOFError, zlib.error):
        pass  # not gzip, or other data follows its members, which readers of gzip skip: `manifest_lines` decides
    copy = folder / f"{manifest.name.removesuffix('.gz')}.gz"
    lines = tqdm(manifest_lines(manifest), f"copying {manifest.name}", unit="cut", leave=False, delay=3)
    with atomic_write(copy) as temporary:
        write_lines(temporary, lines)
    return copy.name


def _tasks(files: Sequence[Path]) -> Iterator[_Task]:
    for index, file in enumerate(files):
        members = read_members(file)
        while task := list(islice(members, _TASK_MEMBERS)):
            yield index, task


def _index_members(manifests: list[Path], model_path: Path, task: _Task) -> tuple[tuple[int, int], int, Rows]:
    """Return the position of the first of some members, their compressed size, and the rows of their cuts."""
    file, members = task
    tokenizer = _load_tokenizer(model_path)
    rows = []
    for offset, member in members:
        start = 0
        for line in lines_of(member):
            with damaged_manifest(manifests[file]):
                values = index_row(parse_cut(line, manifests[file]), tokenizer)
            rows.append((file, offset, start, len(line), *values))
            start += len(line)
    return (file, members[0][0]), sum(len(member) for _, member in members), np.array(rows, ROW)


@cache
def _load_tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer(model_path)
