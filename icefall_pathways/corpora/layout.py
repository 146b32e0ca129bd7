"""File names and splits of prepared data, the same for every corpus.

A folder of manifests holds one corpus. Its name is the first part of the names of manifests, such as
`mls-french_cuts_test.jsonl.gz`, and of decoding results, such as `recogs-mls-french-test-...txt`. Programs read it from
the description of the folder (`icefall_pathways.corpora.description`), so that a new corpus needs neither an option nor
a change outside its own module.

Manifests are Lhotse's: JSON lines with gzip. Each is a sequence of gzip members of at most 100 lines, so that a line
can be read without those before it (`icefall_pathways.sharding.jsonl`), and its bytes depend on its content alone.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from lhotse import Recording, SupervisionSegment
from lhotse.utils import fastcopy
from tqdm import tqdm

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.description import CorpusDescription
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason
from icefall_pathways.languages import (
    Language,
    TextOptions,
    foreign_characters,
    is_language,
    normalize_text,
    normalize_transcript,
)
from icefall_pathways.sharding.executors import Workers
from icefall_pathways.sharding.shards import Shard, ShardedOutput

SPLITS = ("train", "dev", "test")

ManifestKind = Literal["recordings", "supervisions", "cuts"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: Reads a part of the utterances of a split: yields the recording and the supervision of each, and counts those that it
#: rejects, with `CorpusReport.drop`, in the report passed to it.
ReadUtterances = Callable[[Sequence[T], CorpusReport], Iterable[tuple[Recording, SupervisionSegment]]]

#: The name of the corpus of a folder without manifests.
ANY_CORPUS = "*"
_SHARD_SIZE = 1000  # utterances; a second of work


class Utterances(Protocol[T_co]):
    """Whatever is needed to find each utterance of a split, such as a list of paths."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


@dataclass(frozen=True)
class SplitFiles:
    """Paths of one split of one language.

    Attributes:
      folder: Folder of the manifests or of the features.
      corpus: Name of the corpus.
      language: Language of all utterances.
      split: "train", "dev", or "test".
    """

    folder: Path
    corpus: str
    language: Language
    split: str

    @property
    def recordings(self) -> Path:
        """The recording manifest, named as `lhotse prepare` names it."""
        return self._manifest("recordings")

    @property
    def supervisions(self) -> Path:
        """The supervision manifest, named as `lhotse prepare` names it."""
        return self._manifest("supervisions")

    @property
    def cuts(self) -> Path:
        """The manifest of cuts with features."""
        return self._manifest("cuts")

    @property
    def features(self) -> Path:
        """The folder of stored features."""
        return self.folder / f"{self.corpus}-{self.language.name}_feats_{self.split}"

    @property
    def shar(self) -> Path:
        """The folder of the cuts in Lhotse Shar."""
        return self.folder / f"{self.corpus}-{self.language.name}_shar_{self.split}"

    @property
    def shar_cuts(self) -> Path:
        """The manifest of all cuts in `shar`, in their order."""
        return self.shar.with_suffix(".jsonl.gz")

    @property
    def shar_description(self) -> Path:
        """The options of `shar`; written when it is complete."""
        return self.shar.with_suffix(".json")

    @property
    def report(self) -> Path:
        """The counts of kept and rejected utterances."""
        return self.folder / f"{self.corpus}-{self.language.name}_report_{self.split}.json"

    @property
    def manifest_shards(self) -> Path:
        """The folder of unfinished recording and supervision manifests."""
        return self.folder / f"{self.corpus}-{self.language.name}_manifests_{self.split}"

    @property
    def test_set(self) -> str:
        """The name in result files, such as "mls-french-test"."""
        return f"{self.corpus}-{self.language.name}-{self.split}"

    def _manifest(self, kind: ManifestKind) -> Path:
        return self.folder / f"{self.corpus}-{self.language.name}_{kind}_{self.split}.jsonl.gz"


def write_manifests(
    files: SplitFiles, utterances: Utterances[T], read: ReadUtterances[T], workers: Workers | None = None
) -> CorpusReport:
    """Write the manifests and the report of a split, in shards; a complete split is not written again.

    An interrupted call is continued by the next one. Texts are normalized with the options in the description of the
    folder (`normalize_transcript`), or, if it has none, by `normalize_text`. Utterances without text, and those with
    characters outside the alphabet of the language, are dropped and counted.

    Args:
      files: The paths.
      utterances: Input of `read` for each utterance, in the order of the manifests; its items are picklable and
        have a `repr` that depends on their values only.
      read: Reads a part of them; picklable (a module's function, or a `functools.partial` of it).
      workers: Call `read`; None calls it in this process.

    Returns:
      The report; empty after a part of an array job.

    Raises:
      CorpusError: A recording has a sampling rate other than 16 kHz, or a supervision has another language.
    """
    output = ShardedOutput(files.manifest_shards, {"version": 1}, _SHARD_SIZE)
    if files.recordings.exists() and files.supervisions.exists() and files.report.exists():
        if output.is_unfinished:
            output.clean()
        return CorpusReport.load(files.report)
    with tqdm(desc=f"{files.language.code} {files.split}", total=len(utterances), unit="file", leave=False) as bar:
        num_shards = output.compute(utterances, partial(_write_shard, files, read), workers or Workers(), bar)
    report = CorpusReport()
    if num_shards is None:
        return report
    for result in output.results(num_shards):
        report.add(CorpusReport.from_json(result))
    output.join(num_shards, {"recordings": files.recordings, "supervisions": files.supervisions})
    report.save(files.report)
    output.clean()
    return report


def _write_shard(files: SplitFiles, read: ReadUtterances[T], shard: Shard[T]) -> Any:
    """Write the manifests of a shard and return its report as a JSON value."""
    report = CorpusReport()
    description = CorpusDescription.load(files.folder)
    text_options = description.text if description else None
    recordings, supervisions = [], []
    for recording, supervision in read(shard.items, report):
        _check_utterance(files, recording, supervision)
        supervision = fastcopy(supervision, text=_normalize(supervision.text or "", files.language, text_options))
        rejection = _rejection(files, supervision, text_options)
        if rejection is not None:
            report.drop(files.language.code, files.split, *rejection)
            continue
        report.keep(files.language.code, files.split)
        if files.language.alphabet is None:
            report.add_characters(files.language.code, files.split, supervision.text)
        recordings.append(recording.to_dict())
        supervisions.append(supervision.to_dict())
    shard.write("recordings", recordings)
    shard.write("supervisions", supervisions)
    return report.to_json()


def _check_utterance(files: SplitFiles, recording: Recording, supervision: SupervisionSegment) -> None:
    """Check the sampling rate and the language, which the module of a corpus has to set for all utterances."""
    context = f"{files.corpus} {files.language.name} {files.split}: recording {recording.id}"
    if recording.sampling_rate != SAMPLE_RATE:
        raise CorpusError(
            f"{context} has a sampling rate of {recording.sampling_rate} Hz: expected {SAMPLE_RATE} Hz; "
            f"prepare_manifests of this corpus has to yield recording.resample({SAMPLE_RATE})"
        )
    if supervision.language != files.language.code:
        raise CorpusError(
            f"{context} has a supervision with the language {supervision.language!r}: expected "
            f"{files.language.code!r}; prepare_manifests of this corpus has to set it"
        )


def _normalize(text: str, language: Language, options: TextOptions | None) -> str:
    return normalize_transcript(text, language, options) if options else normalize_text(text)


def _rejection(
    files: SplitFiles, supervision: SupervisionSegment, options: TextOptions | None
) -> tuple[Reason, str] | None:
    """Return the reason to drop an utterance because of its text, with a description; None if the text is usable."""
    text = supervision.text or ""
    if foreign := foreign_characters(text, files.language, options):
        return Reason.FOREIGN_CHARACTERS, f"{supervision.id} has {foreign!r} in {text!r}"
    return None if text.strip() else (Reason.NO_TEXT, supervision.id)


def find_corpus(folder: Path, kind: ManifestKind) -> str:
    """Return the name of the corpus whose manifests are in `folder`, from its description.

    A folder of an earlier version has none; then the names of its manifests of the given kind contain the name.

    Returns:
      The name, or "*" if there are none, so that paths made of it do not exist and read as patterns in messages.

    Raises:
      CorpusError: There are manifests of several corpora.
    """
    description = CorpusDescription.load(folder)
    if description is not None:
        return description.name
    pattern = re.compile(rf"(.+)-([^-]+)_{kind}_(?:{'|'.join(SPLITS)})\.jsonl\.gz")
    matches = [pattern.fullmatch(path.name) for path in folder.glob(f"*_{kind}_*.jsonl.gz")]
    corpora = sorted({match[1] for match in matches if match and is_language(match[2])})
    if len(corpora) > 1:
        raise CorpusError(
            f"{folder} holds {kind} of several corpora ({', '.join(corpora)}): expected one; prepare each corpus "
            "in its own --data-dir"
        )
    return corpora[0] if corpora else ANY_CORPUS


def result_name(folder: Path) -> str:
    """Return the name of the corpus in result files: the label in the description of `folder`, or else its corpus.

    Raises:
      CorpusError: There are cuts of several corpora.
    """
    description = CorpusDescription.load(folder)
    return description.label if description and description.label else find_corpus(folder, "cuts")


def describe_corpus(folder: Path, name: str, text: TextOptions | None, label: str = "") -> None:
    """Write the description of a folder before the manifests; a folder with manifests of an earlier version has none.

    Args:
      folder: Folder of the manifests.
      name: Name of the corpus.
      text: Normalization of its transcripts; None: they are used unchanged.
      label: Its name in result files; "": `name`.

    Raises:
      CorpusError: The folder holds another corpus, or was prepared with other options.
    """
    kinds: tuple[ManifestKind, ...] = ("recordings", "cuts")
    has_manifests = any(find_corpus(folder, kind) != ANY_CORPUS for kind in kinds)
    if CorpusDescription.load(folder) is not None or not has_manifests:
        CorpusDescription(name, text, label=label).save(folder)
    elif text not in (None, TextOptions()):
        raise CorpusError(
            f"{folder} was prepared by an earlier version, without case and punctuation: use another --data-dir for "
            "--keep-case or --keep-punctuation"
        )
