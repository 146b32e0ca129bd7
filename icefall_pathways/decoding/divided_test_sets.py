"""Parts of test sets: the units of work that the ranks of a decoding run share.

A part is decoded by itself, so that the results do not depend on the number of ranks. It is stored in a file whose name
is a hash of everything that determines its content: a run that resumes finds the parts that fit its model, options and
cuts, and no others.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from icefall_pathways.data.datamodule import SplitLoader
from icefall_pathways.decoding.scoring import Alternative, Utterance
from icefall_pathways.errors import as_damage
from icefall_pathways.experiment import layout
from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import Language
from icefall_pathways.launch.progress import SharedProgress
from icefall_pathways.launch.ranks import Rank


@dataclass
class Timing:
    """Durations of streaming decoding in seconds.

    Attributes:
      total: Time spent, including `reading`.
      reading: Time spent on reading audio from disk.
      audio: Duration of the decoded audio.
    """

    total: float = 0.0
    reading: float = 0.0
    audio: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of computation per second of audio, from samples to tokens."""
        return (self.total - self.reading) / self.audio

    @classmethod
    def sum(cls, timings: Iterable["Timing"]) -> "Timing":
        """Return the sums of all durations."""
        rows = [(timing.total, timing.reading, timing.audio) for timing in timings]
        return cls(*map(sum, zip(*rows, strict=True)))


@dataclass(frozen=True)
class Decoded:
    """Decoded utterances.

    Attributes:
      utterances: References and hypotheses.
      errors: Error messages, by cut id, of the cuts that could not be decoded.
      timing: Durations; zeros in offline decoding.
    """

    utterances: list[Utterance]
    errors: dict[str, str] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Decoded":
        """Read the result of `save`.

        Raises:
          ValueError: The file is damaged.
        """
        with as_damage(path, ValueError, "remove it, and decode again"):
            values = read_json(path)
            utterances = [
                Utterance(**entry | {"alternatives": [Alternative(**values) for values in entry["alternatives"]]})
                for entry in values["utterances"]
            ]
            return cls(utterances, values["errors"], Timing(**values["timing"]))

    @classmethod
    def merge(cls, parts: Sequence["Decoded"]) -> "Decoded":
        """Concatenate parts."""
        return cls(
            [utterance for part in parts for utterance in part.utterances],
            {cut_id: error for part in parts for cut_id, error in part.errors.items()},
            Timing.sum(part.timing for part in parts),
        )


@dataclass(frozen=True)
class Part:
    """A part of the test set of a language.

    Attributes:
      language: Code of the language.
      batches: Its batches.
      path: The file of the decoded part.
    """

    language: str
    batches: SplitLoader
    path: Path


@dataclass(frozen=True)
class DividedTestSet:
    """The test set of a language, divided into parts.

    Attributes:
      language: The language.
      name: Name in result files, such as "mls-french-test".
      folder: Folder of the decoded parts, used by one run at a time.
      parts: All parts.
    """

    language: Language
    name: str
    folder: Path
    parts: list[Part]

    @property
    def lock_file(self) -> Path:
        """Held by the run that uses the folder."""
        return self.folder / layout.LOCK_FILE

    @property
    def num_cuts(self) -> int:
        """Number of cuts."""
        return sum(part.batches.num_cuts for part in self.parts)

    def load(self) -> Decoded:
        """Read all parts, which have been decoded. Parts with errors are removed, so that the next run repeats them."""
        parts = [Decoded.load(part.path) for part in self.parts]
        for part, decoded in zip(self.parts, parts, strict=True):
            if decoded.errors:
                part.path.unlink()
        return Decoded.merge(parts)


def divide(
    loader: SplitLoader, language: Language, folder: Path, settings: Mapping[str, Any], part_duration: float
) -> DividedTestSet:
    """Divide a test set into parts.

    Args:
      loader: The test set.
      language: Its language.
      folder: Folder for the decoded parts.
      settings: JSON values that, with its cuts, determine the content of a decoded part.
      part_duration: Seconds of audio per part.

    Raises:
      ValueError: Several cuts have the same id.
    """
    ids = [cut.id for cut in loader.cuts]
    for cut_id, next_id in pairwise(ids):
        if cut_id == next_id:
            raise ValueError(
                f"{loader.test_set} has {ids.count(cut_id)} cuts with the id {cut_id}: expected each cut of a test set "
                "once; remove the copies from the manifest"
            )
    parts = [
        Part(language.code, batches, folder / f"{_hash(settings, batches)}.json")
        for batches in loader.parts(part_duration)
    ]
    return DividedTestSet(language, loader.test_set, folder, parts)


def _hash(settings: Mapping[str, Any], batches: SplitLoader) -> str:
    cuts = [cut.to_dict() for cut in batches.cuts]
    return hashlib.sha256(json.dumps([settings, cuts], sort_keys=True, default=str).encode()).hexdigest()[:32]


def decode_parts(
    rank: Rank,
    test_sets: Sequence[DividedTestSet],
    decode: Callable[[Part, SharedProgress], Decoded],
    description: str,
) -> None:
    """Decode the missing parts, and wait until the other ranks have decoded theirs.

    Ranks take one part after another, in the order of the test sets.

    Args:
      rank: This rank.
      test_sets: All test sets, the same on every rank.
      decode: Decodes a part, and adds the number of its cuts to the progress.
      description: Shown before the progress bar.
    """
    parts = [part for test_set in test_sets for part in test_set.parts]
    progress = SharedProgress(rank, sum(test_set.num_cuts for test_set in test_sets), description, "utterance")
    while (index := rank.count("parts") - 1) < len(parts):
        part = parts[index]
        if part.path.exists():
            progress.update(part.batches.num_cuts)
        else:
            decode(part, progress).save(part.path)
    progress.wait()
    rank.barrier()  # a part is stored after its last cut has been counted
