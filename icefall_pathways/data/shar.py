"""Training cuts in Lhotse Shar: tar files, each read from its start to its end.

Cuts are shuffled before they are written, so that each shard is a random sample of the corpus: reading is sequential,
and the cuts of a batch are still from anywhere in the corpus. The folder of a language holds, for shard i,
`cuts.i.jsonl.gz`, and `features.i.tar` or `recording.i.tar`, as Lhotse writes them. Next to it are a manifest of all
its cuts and, written last, a description. The folder may be moved, also to an object store.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.shar import SharWriter
from lhotse.shar.readers.lazy import LazySharIterator
from tqdm import tqdm

from icefall_pathways.corpora.layout import SplitFiles
from icefall_pathways.data.cut_index import CutIndex
from icefall_pathways.data.manifests import DataError, check_cut
from icefall_pathways.data.permutation import permute, stable_hash
from icefall_pathways.errors import as_damage, root_cause
from icefall_pathways.files import TEMPORARY_PREFIX, read_json, remembered_sha256, sha256, write_errors, write_json
from icefall_pathways.sharding.executors import Workers
from icefall_pathways.sharding.jsonl import read_lines, write_lines
from icefall_pathways.sharding.shards import Shard, ShardedOutput

SharField = Literal["features", "recording"]

_FORMATS = {"features": "lilcom", "recording": "flac"}
_FILE_URL = "file://"
_BLOCK = 1 << 16  # cuts whose order is computed at once


@dataclass(frozen=True)
class SharConfig:
    """Options of the shards.

    Attributes:
      field: What to store in tar files.
      shard_size: Number of cuts per shard.
      seed: Seed of the order.
    """

    field: SharField = "features"
    shard_size: int = 400
    seed: int = 42


def read_config(files: SplitFiles, memory: Path) -> SharConfig:
    """Return how the shards of a split were written.

    Args:
      files: Paths of the split.
      memory: File that keeps the hash of the cuts, see `remembered_sha256`.

    Raises:
      DataError: They are missing, not complete, damaged, or of other cuts than those of the split.
    """
    again = f"write them with ./prepare.sh --store shar --languages {files.language.code}"
    for path in (files.shar_description, files.shar_cuts):
        if not path.is_file():
            raise DataError(f"no {path}, which would complete the shards in {files.shar}: {again}")
    with as_damage(files.shar_description, DataError, f"remove it, and {again}"):
        options = read_json(files.shar_description)
        config = SharConfig(options["field"], int(options["shard_size"]), options["seed"])
        if config.field not in _FORMATS or config.shard_size < 1:
            raise ValueError(f"it has the field {config.field!r} and {config.shard_size} cuts per shard")
        stored = str(options["cuts"])
    if stored != remembered_sha256(files.cuts, memory):
        raise DataError(
            f"{files.cuts} has been changed since the shards in {files.shar} were written: remove "
            f"{files.shar_description}, and {again}"
        )
    return config


def shar_location(files: SplitFiles, folder: str) -> str:
    """Return the folder or URL of the shards of a split; `folder` is where they have been moved to, "" if nowhere.

    A URL of a file becomes its path, since Lhotse takes a URL without a host for the name of a file.
    """
    if not folder:
        return str(files.shar)
    if folder.startswith(_FILE_URL):
        folder = unquote(folder.removeprefix(_FILE_URL).removeprefix("localhost"))
    if folder.startswith("~"):
        folder = str(Path(folder).expanduser())
    return f"{folder.rstrip('/')}/{files.shar.name}"


def export_shar(index: CutIndex, files: SplitFiles, config: SharConfig, workers: Workers) -> None:
    """Write all cuts of an index in random order.

    A complete export is not written again, and finished shards of an interrupted run are kept.

    Args:
      index: The cuts.
      files: Paths of the split.
      config: The options.
      workers: Write the shards; for a part of an array job, only its part.

    Raises:
      DataError: A cut has no data or cannot be read, or the folder holds shards of other options or of other cuts.
    """
    cuts = sha256(files.cuts)
    options = asdict(config) | {"cuts": cuts}
    if files.shar_description.is_file():
        stored = read_json(files.shar_description)
        if stored == options:
            return
        raise DataError(
            f"{files.shar} holds shards of other options or of other cuts ({stored}, now {options}): remove "
            f"{files.shar_description} to write them again"
        )
    folder = files.shar
    folder.mkdir(parents=True, exist_ok=True)
    output = ShardedOutput(folder.with_name(f"{folder.name}.unfinished"), options, config.shard_size)
    write_shard = partial(_write_shard, index, folder, config.field)
    with tqdm(total=len(index), desc=f"shards {files.language.code}", unit="cut") as bar:
        num_shards = output.compute(_random_order(len(index), config.seed), write_shard, workers, bar)
    if num_shards is not None:
        output.join(num_shards, {"cuts": files.shar_cuts})
        write_json(files.shar_description, options)
        output.clean()


def _random_order(size: int, seed: int) -> Iterator[int]:
    for start in range(0, size, _BLOCK):
        yield from permute(np.arange(start, min(start + _BLOCK, size)), size, stable_hash(seed)).tolist()


def _write_shard(index: CutIndex, folder: Path, field: SharField, shard: Shard[int]) -> None:
    suffix = f".{shard.index:06d}"
    tar = folder / f"{field}{suffix}.tar"
    with TemporaryDirectory(dir=shard.folder, prefix=TEMPORARY_PREFIX) as name, write_errors(tar):
        temporary = Path(name)
        with SharWriter(temporary, {field: _FORMATS[field]}, shard_size=None, shard_suffix=suffix) as writer:
            for cut in index.load(shard.items):
                writer.write(_keep_only(cut, field))
        manifest = temporary / f"cuts{suffix}.jsonl.gz"
        lines = list(read_lines(manifest))
        write_lines(manifest, lines)  # the same bytes in every run
        shard.write("cuts", (_trusted(json.loads(line), field) for line in lines))
        for path in (manifest, temporary / tar.name):
            path.replace(folder / path.name)


def _trusted(cut: dict[str, Any], field: SharField) -> dict[str, Any]:
    """Replace the type "shar" of the data, which is not accepted in untrusted manifests, by one that reads nothing."""
    if field == "features":
        cut[field]["storage_type"] = "memory_lilcom"
    else:
        cut[field]["sources"][0]["type"] = "memory"
    return cut


def _keep_only(cut: Cut, field: SharField) -> Cut:
    if not (cut.has_features if field == "features" else cut.has_recording):
        raise DataError(f"cut {cut.id} has no {field}: run stage 3 of prepare.sh with its default options first")
    return cut.drop_recording() if field == "features" else cut.drop_features()


class SharIndex(CutIndex):
    """Index of the cuts of shards; `load` reads whole shards.

    Args:
      index: The index of the manifest of all cuts.
      location: Folder or URL of the tar files.
      config: How they were written.
    """

    def __init__(self, index: CutIndex, location: str, config: SharConfig) -> None:
        super().__init__(index.path, index.manifests, index.folder)
        self._location = location
        self.config = config
        self.num_kept = 1
        self._kept: OrderedDict[int, list[Cut]] = OrderedDict()

    def load(self, numbers: Iterable[int]) -> CutSet:
        """Return cuts with their data; the last `num_kept` shards stay in memory.

        Raises:
          DataError: A shard cannot be read, or a cut is not trustworthy.
        """
        positions = (divmod(int(i), self.config.shard_size) for i in numbers)
        return CutSet.from_cuts([self._shard(shard)[position] for shard, position in positions])

    def _shard(self, shard: int) -> list[Cut]:
        if shard not in self._kept:
            self._kept[shard] = self._read_shard(shard)
        self._kept.move_to_end(shard)
        while len(self._kept) > self.num_kept:
            self._kept.popitem(last=False)
        return self._kept[shard]

    def _read_shard(self, shard: int) -> list[Cut]:
        field = self.config.field
        paths = {
            "cuts": [f"{self._location}/cuts.{shard:06d}.jsonl.gz"],
            field: [f"{self._location}/{field}.{shard:06d}.tar"],
        }
        try:
            cuts = list(LazySharIterator(paths))
        except Exception as error:  # object stores raise exceptions of many types
            raise DataError(
                f"cannot read {paths[field][0]} ({root_cause(error)}): check --shar-dir, or write the shards again"
            ) from error
        expected = min(self.config.shard_size, len(self) - shard * self.config.shard_size)
        if len(cuts) != expected:
            raise DataError(f"{paths[field][0]} has {len(cuts)} cuts, expected {expected}: write the shards again")
        durations = self.durations[shard * self.config.shard_size :]
        for cut, duration in zip(cuts, durations, strict=False):
            check_cut(cut, Path(paths["cuts"][0]))
            if cut.duration != duration:
                raise DataError(
                    f"cut {cut.id} in {paths['cuts'][0]} has a duration of {cut.duration:g} s, expected {duration:g} "
                    f"as in {self.manifests[0]}: the shard is of another export; check --shar-dir, or write the shards "
                    "again"
                )
        return cuts

    def __reduce__(self) -> tuple[Any, ...]:
        index = CutIndex(self.path, self.manifests, self.folder)
        return type(self), (index, self._location, self.config), {"num_kept": self.num_kept}
