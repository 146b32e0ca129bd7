"""Features of very many cuts, made by many processes, a part at a time: what is finished is kept.

A folder holds, of part i, the features `feats-i.lca` (if they are kept), the cuts `cuts-i.jsonl.gz` and, written last,
`part-i.json` with what could not be decoded. When all parts are done, the cuts become one file and only features stay.
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

_SHARD_SIZE = 400  # cuts that one process takes
_MAX_QUEUED = 2  # parts per process that are ready to be taken; the rest of the manifest is not read yet

Unreadable = list[tuple[str, str]]  # ids of cuts, and why


@dataclass(frozen=True)
class FeatureShards:
    """A folder of parts.

    Attributes:
      folder: Made if need be.
      store_feats: Whether features are kept; without, cuts are only decoded, to find those that cannot be.
      options: Plain data that says what the parts are made of and how; parts made otherwise are removed.
    """

    folder: Path
    store_feats: bool
    options: dict[str, Any]

    @property
    def _stamp(self) -> Path:
        return self.folder / "options.json"

    def make(self, cuts: Iterable[Cut], pool: ProcessPoolExecutor, num_jobs: int, bar: tqdm) -> Unreadable:
        """Make the parts that are not there yet.

        Args:
          cuts: All of them, in the same order whenever it is called; they are read as they are needed.
          pool: Makes the parts.
          num_jobs: Its processes.
          bar: Told of each cut that is done.

        Returns:
          What could not be decoded, of all parts.
        """
        if not self._stamp.exists() or read_json(self._stamp) != self.options:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(self._stamp, self.options)
        waiting: deque[tuple[int, Future[None]]] = deque()
        for number, part in enumerate(_in_parts(cuts)):
            if self._mark(number).exists():
                bar.update(len(part))
                continue
            if len(waiting) > _MAX_QUEUED * num_jobs:
                _finish(*waiting.popleft(), bar)
            waiting.append((len(part), pool.submit(self._make_part, number, part)))
        while waiting:
            _finish(*waiting.popleft(), bar)
        return [(cut_id, reason) for mark in self._marks() for cut_id, reason in read_json(mark)["unreadable"]]

    def join(self, output: Path) -> None:
        """Write the cuts of all parts to one file, and remove what is no longer needed."""
        paths = [self._cuts(number) for number in range(len(self._marks()))]
        with atomic_write(output) as temporary, temporary.open("wb") as file:
            for path in paths:  # files in gzip's format, one after the other, are one
                with path.open("rb") as part:
                    shutil.copyfileobj(part, file)
        for path in (*self._marks(), *paths, self._stamp):
            path.unlink()
        if not self.store_feats:
            self.folder.rmdir()

    def remove(self) -> None:
        """Remove all parts, so that the next call makes them anew."""
        shutil.rmtree(self.folder)

    def _make_part(self, number: int, cuts: list[Cut]) -> None:
        stored, unreadable = _store(cuts, self.folder / f"feats-{number}" if self.store_feats else None)
        with atomic_write(self._cuts(number)) as temporary:
            CutSet.from_cuts(stored).to_file(temporary)
        write_json(self._mark(number), {"unreadable": unreadable})

    def _cuts(self, number: int) -> Path:
        return self.folder / f"cuts-{number}.jsonl.gz"

    def _mark(self, number: int) -> Path:
        return self.folder / f"part-{number}.json"

    def _marks(self) -> list[Path]:
        return [self._mark(number) for number in range(sum(1 for _ in self.folder.glob("part-*.json")))]


def _in_parts(cuts: Iterable[Cut]) -> Iterator[list[Cut]]:
    every = iter(cuts)
    while part := list(islice(every, _SHARD_SIZE)):
        yield part


def _finish(number_of_cuts: int, job: Future[None], bar: tqdm) -> None:
    job.result()
    bar.update(number_of_cuts)


def _store(cuts: list[Cut], path: Path | None) -> tuple[list[Cut], Unreadable]:
    """Store the features of some cuts, if there is a path; the cuts, and which could not be decoded and why."""
    extractor = FbankConfig().extractor()
    stored: list[Cut] = []
    unreadable: Unreadable = []
    with nullcontext() if path is None else LilcomChunkyWriter(path) as writer:
        for cut in cuts:
            try:
                audio = cut.recording.load_audio(offset=cut.start, duration=cut.duration)
            except Exception as error:  # the audio backends raise whatever they like
                unreadable.append((cut.id, last_line(error)))
                continue
            stored.append(cut if writer is None else _with_features(cut, audio, extractor, writer))
    return stored, unreadable


def _with_features(cut: Cut, audio: np.ndarray, extractor: FeatureExtractor, writer: LilcomChunkyWriter) -> MonoCut:
    """The cut with the features of its audio (channels, samples), downmixed."""
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
        supervision.channel = 0  # the features are those of the downmixed audio
    return MonoCut(
        id=cut.id,
        start=0.0,
        duration=cut.duration,
        channel=0,
        supervisions=supervisions,
        features=stored,
        recording=cut.recording,
    )
