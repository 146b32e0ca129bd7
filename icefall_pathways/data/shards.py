"""Sharded, resumable, multi-process feature extraction.

The folder of a split holds, for shard i, the features `feats-i.lca` (if they are stored), the cuts `cuts-i.jsonl.gz`,
and, written last, `part-i.json` with the cuts that could not be decoded. When all shards are complete, their cuts are
concatenated into one manifest and only the features remain.
"""

import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, FeatureExtractor, Features, LilcomChunkyWriter, MonoCut
from lhotse.cut import Cut
from tqdm import tqdm

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.errors import last_line
from icefall_pathways.files import atomic_write, read_json, write_json

_SHARD_SIZE = 400  # cuts
_MAX_QUEUED = 2  # queued shards per process; bounds how far the manifest is read ahead

Unreadable = list[tuple[str, str]]  # cut ids, and the errors of their decoders


@dataclass(frozen=True)
class FeatureShards:
    """The shards of one split.

    Attributes:
      folder: Folder of the shards; created if it does not exist.
      store_feats: Whether to store features; otherwise cuts are only decoded, to detect unreadable ones.
      options: JSON values that determine the content of the shards; shards with other options are removed.
    """

    folder: Path
    store_feats: bool
    options: dict[str, Any]

    @property
    def _options_file(self) -> Path:
        return self.folder / "options.json"

    def compute(self, cuts: Iterable[Cut], pool: ProcessPoolExecutor, num_jobs: int, bar: tqdm) -> Unreadable:
        """Compute the missing shards in parallel.

        Args:
          cuts: All cuts, in the same order in every call; consumed lazily.
          pool: Worker processes.
          num_jobs: Number of processes of the pool.
          bar: Progress bar, in cuts.

        Returns:
          The cuts of all shards that could not be decoded.
        """
        if not self._options_file.exists() or read_json(self._options_file) != self.options:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(self._options_file, self.options)
        queue: deque[tuple[int, Future[None]]] = deque()
        for index, shard in enumerate(_split(cuts)):
            if self._mark(index).exists():
                bar.update(len(shard))
                continue
            if len(queue) > _MAX_QUEUED * num_jobs:
                _wait(*queue.popleft(), bar)
            queue.append((len(shard), pool.submit(self._compute_shard, index, shard)))
        while queue:
            _wait(*queue.popleft(), bar)
        return [(cut_id, error) for mark in self._marks() for cut_id, error in read_json(mark)["unreadable"]]

    def join(self, output: Path) -> None:
        """Concatenate the cuts of all shards into one manifest and remove the intermediate files."""
        paths = [self._cuts(index) for index in range(len(self._marks()))]
        with atomic_write(output) as temporary, temporary.open("wb") as file:
            for path in paths:  # the concatenation of gzip files is a gzip file
                with path.open("rb") as shard:
                    shutil.copyfileobj(shard, file)
        for path in (*self._marks(), *paths, self._options_file):
            path.unlink()
        if not self.store_feats:
            self.folder.rmdir()

    def remove(self) -> None:
        """Remove all shards."""
        shutil.rmtree(self.folder)

    def _compute_shard(self, index: int, cuts: list[Cut]) -> None:
        stored, unreadable = _compute(cuts, self.folder / f"feats-{index}" if self.store_feats else None)
        with atomic_write(self._cuts(index)) as temporary:
            CutSet.from_cuts(stored).to_file(temporary)
        write_json(self._mark(index), {"unreadable": unreadable})

    def _cuts(self, index: int) -> Path:
        return self.folder / f"cuts-{index}.jsonl.gz"

    def _mark(self, index: int) -> Path:
        return self.folder / f"part-{index}.json"

    def _marks(self) -> list[Path]:
        return [self._mark(index) for index in range(sum(1 for _ in self.folder.glob("part-*.json")))]


def _split(cuts: Iterable[Cut]) -> Iterator[list[Cut]]:
    iterator = iter(cuts)
    while shard := list(islice(iterator, _SHARD_SIZE)):
        yield shard


def _wait(num_cuts: int, job: Future[None], bar: tqdm) -> None:
    job.result()
    bar.update(num_cuts)


def _compute(cuts: list[Cut], path: Path | None) -> tuple[list[Cut], Unreadable]:
    """Decode cuts and, unless `path` is None, store their features; return the decoded cuts and the unreadable ones."""
    extractor = FbankConfig().extractor()
    decoded: list[Cut] = []
    unreadable: Unreadable = []
    with nullcontext() if path is None else LilcomChunkyWriter(path) as writer:
        for cut in cuts:
            try:
                audio = cut.recording.load_audio(offset=cut.start, duration=cut.duration)
            except Exception as error:  # audio backends raise exceptions of many types
                unreadable.append((cut.id, last_line(error)))
                continue
            decoded.append(cut if writer is None else _store_features(cut, audio, extractor, writer))
    return decoded, unreadable


def _store_features(cut: Cut, audio: np.ndarray, extractor: FeatureExtractor, writer: LilcomChunkyWriter) -> MonoCut:
    """Store the features of `audio` (channels, samples), downmixed, and return the cut with them."""
    rate = cut.sampling_rate
    features = np.asarray(extractor.extract(audio.mean(axis=0, keepdims=True), rate))
    key = writer.write(cut.id, features)
    stored = Features(
        type=extractor.name,
        num_frames=features.shape[0],
        num_features=features.shape[1],
        frame_shift=extractor.frame_shift,
        sampling_rate=rate,
        start=0.0,
        duration=cut.duration,
        storage_type=writer.name,
        storage_path=str(writer.storage_path),
        storage_key=key,
        recording_id=cut.recording_id,
        channels=0,
    )
    supervisions = [supervision.with_offset(0.0) for supervision in cut.supervisions]
    for supervision in supervisions:
        supervision.channel = 0  # of the downmixed audio
    return MonoCut(
        id=cut.id,
        start=0.0,
        duration=cut.duration,
        channel=0,
        supervisions=supervisions,
        features=stored,
        recording=cut.recording,
    )
