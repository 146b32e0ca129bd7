"""Outputs that are computed in shards: resumable, in any order, by any processes of any machines, and then joined.

The folder of an output holds the files of shard i, `<name>-i.<suffix>`, and, written last, its mark `part-i.json` with
the hash of its inputs. `options.json` holds what else determines the content. Joining concatenates the shards of each
name into one manifest and removes what was only needed until then. The joined files depend on the inputs and the
options alone, not on the number or the kind of workers, nor on interruptions.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from icefall_pathways.files import atomic_write, read_json, write_json
from icefall_pathways.sharding.executors import Workers
from icefall_pathways.sharding.jsonl import write_jsonl

T = TypeVar("T")


@dataclass(frozen=True)
class Shard(Generic[T]):
    """A part of the items, with the paths of its outputs.

    Attributes:
      folder: Folder of all shards.
      index: Number of the shard, from 0.
      items: Its items; picklable.
    """

    folder: Path
    index: int
    items: Sequence[T]

    def path(self, name: str, suffix: str = "jsonl.gz") -> Path:
        """Return the path of an output."""
        return self.folder / f"{name}-{self.index}.{suffix}"

    def write(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        """Write the shard of a manifest."""
        with atomic_write(self.path(name)) as temporary:
            write_jsonl(temporary, records)


@dataclass(frozen=True)
class ShardedOutput:
    """The outputs of one computation.

    Attributes:
      folder: Folder of the shards; created if it does not exist.
      options: JSON values that, with the items, determine the content of the shards.
      shard_size: Number of items per shard.
    """

    folder: Path
    options: dict[str, Any]
    shard_size: int

    def compute(
        self, items: Iterable[T], compute: Callable[[Shard[T]], Any], workers: Workers, bar: tqdm
    ) -> int | None:
        """Compute the missing shards of this part of an array job.

        Args:
          items: All items, in the same order in every call; picklable, with a `repr` that depends on their values only.
          compute: Writes the outputs of a shard, atomically, and returns a JSON value for `results`; picklable.
          workers: Run `compute`.
          bar: Progress bar, in items.

        Returns:
          The number of shards; None for a part of an array job, which cannot know when the other parts are complete.

        Raises:
          ValueError: The folder holds unfinished shards of other options.
        """
        self._check_options()
        num_shards = 0
        outdated: list[int] = []

        def missing() -> Iterator[tuple[Shard[T], str]]:
            nonlocal num_shards
            for shard in self._split(items):
                num_shards = shard.index + 1
                inputs = hashlib.sha256(repr(shard.items).encode()).hexdigest()
                stored = self._stored_inputs(shard.index)
                if stored == inputs or not workers.part.selects(shard.index):
                    bar.update(len(shard.items))
                    continue
                if stored is not None:
                    outdated.append(shard.index)
                yield shard, inputs

        for num_items in workers.map(partial(_compute_shard, compute), missing()):
            bar.update(num_items)
        if outdated:
            print(f"{self.folder}: computed {len(outdated)} shards again, whose inputs have changed", file=sys.stderr)
        return num_shards if workers.part.num_parts == 1 else None

    def results(self, num_shards: int) -> list[Any]:
        """Return the results of all shards."""
        return [read_json(self._mark(index))["result"] for index in range(num_shards)]

    def join(self, num_shards: int, manifests: Mapping[str, Path]) -> None:
        """Concatenate the shards of manifests.

        Args:
          num_shards: Number of shards, as `compute` returned it.
          manifests: Path of the manifest by the name of its shards.
        """
        for name, output in manifests.items():
            with atomic_write(output) as temporary, temporary.open("wb") as file:
                for index in range(num_shards):  # the concatenation of gzip files is a gzip file
                    with Shard(self.folder, index, ()).path(name).open("rb") as shard:
                        shutil.copyfileobj(shard, file)

    def clean(self, keep: str = "") -> None:
        """Remove the shards, except files whose names match the pattern `keep`, and the folder if it is empty."""
        kept = set(self.folder.glob(keep)) if keep else set()
        # The options are removed last, so that an interrupted removal is completed by the next call.
        for path in sorted(self.folder.glob("*"), key=lambda path: path == self._options_file):
            if path not in kept:
                path.unlink()
        if not kept and self.folder.exists():
            self.folder.rmdir()

    @property
    def is_unfinished(self) -> bool:
        """True if the folder holds shards that have not been joined and removed."""
        return self._options_file.exists()

    @property
    def _options_file(self) -> Path:
        return self.folder / "options.json"

    def _mark(self, index: int) -> Path:
        return self.folder / f"part-{index}.json"

    def _stored_inputs(self, index: int) -> str | None:
        """Return the hash of the inputs that a shard was computed from; None if it is missing."""
        mark = self._mark(index)
        return read_json(mark)["inputs"] if mark.exists() else None

    def _check_options(self) -> None:
        if not self._options_file.exists():
            write_json(self._options_file, self.options)
            return
        stored = read_json(self._options_file)
        if stored != self.options:
            changed = sorted(name for name in {*stored, *self.options} if stored.get(name) != self.options.get(name))
            differences = ", ".join(f"{name} {stored.get(name)!r}, now {self.options.get(name)!r}" for name in changed)
            raise ValueError(
                f"{self.folder} holds unfinished work of other options ({differences}): use the same options to "
                "continue it, or remove the folder to start again"
            )

    def _split(self, items: Iterable[T]) -> Iterator[Shard[T]]:
        iterator, index = iter(items), 0
        while part := tuple(islice(iterator, self.shard_size)):
            yield Shard(self.folder, index, part)
            index += 1


def _compute_shard(compute: Callable[[Shard[T]], Any], task: tuple[Shard[T], str]) -> int:
    """Compute a shard, write its mark, and return its number of items."""
    shard, inputs = task
    result = compute(shard)
    write_json(shard.folder / f"part-{shard.index}.json", {"inputs": inputs, "result": result})
    return len(shard.items)
