"""File names and splits of prepared data, the same for every corpus.

A folder of manifests holds one corpus. Its name is the first part of the names of manifests, such as
`mls-french_cuts_test.jsonl.gz`, and of decoding results, such as `recogs-mls-french-test-...txt`. Programs read it from
the manifest names, so that a new corpus needs neither an option nor a change outside its own module.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason, foreign_characters
from icefall_pathways.files import atomic_write
from icefall_pathways.languages import LANGUAGES, Language

SPLITS = ("train", "dev", "test")

ManifestKind = Literal["recordings", "supervisions", "cuts"]

_ANY_CORPUS = "*"


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
    def report(self) -> Path:
        """The counts of kept and rejected utterances."""
        return self.folder / f"{self.corpus}-{self.language.name}_report_{self.split}.json"

    @property
    def test_set(self) -> str:
        """The name in result files, such as "mls-french-test"."""
        return f"{self.corpus}-{self.language.name}-{self.split}"

    def _manifest(self, kind: ManifestKind) -> Path:
        return self.folder / f"{self.corpus}-{self.language.name}_{kind}_{self.split}.jsonl.gz"


def write_manifests(
    files: SplitFiles, read_utterances: Callable[[CorpusReport], Iterable[tuple[Recording, SupervisionSegment]]]
) -> CorpusReport:
    """Write the manifests and the report of a split; a complete split is not written again.

    Utterances without text, and those with characters outside the alphabet of the language, are dropped and counted.

    Args:
      files: The paths.
      read_utterances: Yields the recording and the supervision of each utterance; counts those that it rejects, with
        `CorpusReport.drop`, in the report passed to it.

    Returns:
      The report.

    Raises:
      CorpusError: A recording has a sampling rate other than 16 kHz, or a supervision has another language.
    """
    if files.recordings.exists() and files.supervisions.exists() and files.report.exists():
        return CorpusReport.load(files.report)
    report = CorpusReport()
    with (
        atomic_write(files.recordings) as recordings_path,
        atomic_write(files.supervisions) as supervisions_path,
        RecordingSet.open_writer(recordings_path) as recordings,
        SupervisionSet.open_writer(supervisions_path) as supervisions,
    ):
        for recording, supervision in read_utterances(report):
            _check_utterance(files, recording, supervision)
            rejection = _rejection(files, supervision)
            if rejection is not None:
                report.drop(files.language.code, files.split, *rejection)
                continue
            report.keep(files.language.code, files.split)
            recordings.write(recording)
            supervisions.write(supervision)
    report.save(files.report)
    return report


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


def _rejection(files: SplitFiles, supervision: SupervisionSegment) -> tuple[Reason, str] | None:
    """Return the reason to drop an utterance because of its text, with a description; None if the text is usable."""
    text = supervision.text or ""
    if foreign := foreign_characters(text, files.language):
        return Reason.FOREIGN_CHARACTERS, f"{supervision.id} has {foreign!r} in {text!r}"
    return None if text.strip() else (Reason.NO_TEXT, supervision.id)


def find_corpus(folder: Path, kind: ManifestKind) -> str:
    """Return the name of the corpus whose manifests of the given kind are in `folder`.

    Returns:
      The name, or "*" if there are none, so that paths made of it do not exist and read as patterns in messages.

    Raises:
      CorpusError: There are manifests of several corpora.
    """
    languages = "|".join(language.name for language in LANGUAGES.values())
    pattern = re.compile(rf"(.+)-(?:{languages})_{kind}_(?:{'|'.join(SPLITS)})\.jsonl\.gz")
    matches = [pattern.fullmatch(path.name) for path in folder.glob(f"*_{kind}_*.jsonl.gz")]
    corpora = sorted({match[1] for match in matches if match})
    if len(corpora) > 1:
        raise CorpusError(
            f"{folder} holds {kind} of several corpora ({', '.join(corpora)}): expected one; prepare each corpus "
            "in its own --data-dir"
        )
    return corpora[0] if corpora else _ANY_CORPUS
