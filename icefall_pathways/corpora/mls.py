"""Convert a folder in the layout of Multilingual LibriSpeech (OpenSLR 94) into Lhotse manifests.

Any such folder is accepted, with any subset of the languages, and with flac or opus audio. Unusable lines and files are
dropped and counted.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse import Recording, SupervisionSegment

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora import mls_layout
from icefall_pathways.corpora.download import DownloadConfig, download_mls
from icefall_pathways.corpora.layout import ANY_CORPUS, SPLITS, SplitFiles, find_corpus, write_manifests
from icefall_pathways.corpora.recordings import make_supervision, read_recording
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Note, Reason
from icefall_pathways.errors import last_line
from icefall_pathways.files import read_lines
from icefall_pathways.languages import Language, foreign_characters, normalize_text
from icefall_pathways.sharding.executors import Workers

CORPUS = "mls"  # name of the corpus of a folder without a description
# Values of --subset: all training data, or parts of the limited supervision; the two parts together are ten hours.
SUBSETS = {"train": (), "10hr": ("9hr", "1hr"), "9hr": ("9hr",), "1hr": ("1hr",)}

_NAME = re.compile(r"\w[\w.-]*")  # of a folder below audio/
_UNKNOWN_SPEAKER = "speaker not in metainfo.txt"  # a note in reports


def language_folder(corpus_dir: Path, language: Language) -> Path:
    """Return the folder of a language: mls_<name>, or mls_<name>_opus.

    Raises:
      CorpusError: Neither exists.
    """
    names = [mls_layout.folder_name(language, audio_format) for audio_format in ("flac", "opus")]
    for name in names:
        if (corpus_dir / name).is_dir():
            return corpus_dir / name
    existing = (
        ", ".join(sorted(path.name for path in corpus_dir.glob("mls_*"))) if corpus_dir.is_dir() else "no such folder"
    )
    raise CorpusError(
        f"no {' or '.join(names)} in {corpus_dir} (found: {existing or 'nothing'}): check --corpus-dir and --languages"
    )


def acquire(corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
    """Download the corpus with default options, see `CorpusModule`; files are downloaded one after the other."""
    download_mls(DownloadConfig(corpus_dir, " ".join(language.code for language in languages)))


def prepare_manifests(
    corpus_dir: Path,
    output_dir: Path,
    languages: Sequence[Language],
    subset: str = "train",
    workers: Workers | None = None,
) -> CorpusReport:
    """Write the recording and supervision manifests of all splits; completed splits are skipped.

    Args:
      corpus_dir: Folder that holds mls_<language> folders.
      output_dir: Folder for the manifests.
      languages: Languages to prepare.
      subset: Training data: "train" (all), or limited supervision: "10hr", or one of its parts, "9hr" and "1hr".
      workers: Read the audio headers; None reads them in this process.

    Returns:
      The numbers of kept and dropped utterances of the splits that are complete.

    Raises:
      CorpusError: A folder, split, or transcript file is missing.
    """
    if subset not in SUBSETS:
        raise CorpusError(f"--subset {subset!r}: expected one of {', '.join(SUBSETS)}")
    report = CorpusReport()
    corpus = find_corpus(output_dir, "recordings")
    for language in languages:
        folder = language_folder(corpus_dir, language)
        _check_splits(folder)
        for split, lines in _lines_of_splits(folder, subset).items():
            files = SplitFiles(output_dir, CORPUS if corpus == ANY_CORPUS else corpus, language, split)
            read = partial(_read_lines, folder / split, language, split)
            report.add(write_manifests(files, lines, read, workers))
    return report


def _lines_of_splits(folder: Path, subset: str) -> "dict[str, _Lines]":
    """Return the utterances of each split; what is held out for dev and test is a problem of earlier splits."""
    genders = _read_genders(folder / mls_layout.METAINFO_FILE)
    splits: dict[str, _Lines] = {}
    for split in reversed(SPLITS):
        is_limited = split == "train" and subset != "train"
        selected = _limited_handles(folder / split / mls_layout.LIMITED_DIR, subset) if is_limited else None
        path = folder / split / mls_layout.TRANSCRIPTS_FILE
        splits[split] = _Lines(path, genders, selected, held_out=list(splits.values()))
    return {split: splits[split] for split in SPLITS}


class _Line(NamedTuple):
    """A line of transcripts.txt.

    Attributes:
      handle: Id of the utterance.
      text: The transcript as it is in the file.
      gender: Gender of the speaker, if metainfo.txt lists the speaker.
      problem: Reason to drop the utterance, and a description, if the handle alone gives one.
    """

    handle: str
    text: str
    gender: str | None
    problem: tuple[Reason, str] | None = None

    @property
    def speaker(self) -> str:
        return _speaker(self.handle)

    @property
    def normalized_text(self) -> str:
        """The normalized transcript."""
        return normalize_text(self.text)


class _Lines:
    """The utterances of a split: the lines of transcripts.txt, read in every iteration, and handles without a line.

    Args:
      path: The file transcripts.txt.
      genders: Genders by speaker.
      selected: Handles to read; None: all.
      held_out: Splits whose handles this one must not contain.
    """

    def __init__(
        self,
        path: Path,
        genders: dict[str, str],
        selected: set[str] | None = None,
        held_out: "Sequence[_Lines]" = (),
    ) -> None:
        self._path = path
        self._genders = genders
        self._selected = selected
        self._held_out = held_out

    def __len__(self) -> int:
        return len(self._hashes) + len(self._without_transcript)

    def __iter__(self) -> Iterator[_Line]:
        repeated = set(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]].tolist())
        held_out = {handle for lines in self._held_out for handle, _ in lines._read()}
        seen: set[str] = set()
        for handle, text in self._read():
            problem = None
            if handle in seen:
                problem = Reason.DUPLICATE, f"{handle} in {self._path}"
            elif handle in held_out:
                problem = Reason.HELD_OUT, f"{handle} in {self._path}"
            yield _Line(handle, text, self._genders.get(_speaker(handle)), problem)
            if hash(handle) in repeated:
                seen.add(handle)
        for handle in self._without_transcript:
            problem = Reason.NO_TRANSCRIPT, f"{handle} is in {mls_layout.HANDLES_FILE}, but not in {self._path}"
            yield _Line(handle, "", None, problem)

    @cached_property
    def _hashes(self) -> np.ndarray:
        """The sorted hashes of all handles: 8 bytes each, where a set of the English handles takes a gigabyte."""
        return np.sort(np.fromiter((hash(handle) for handle, _ in self._read()), np.int64))

    @cached_property
    def _without_transcript(self) -> list[str]:
        """The selected handles that transcripts.txt lacks, sorted."""
        return sorted(self._selected - {handle for handle, _ in self._read()}) if self._selected else []

    def _read(self) -> Iterator[tuple[str, str]]:
        lines = _read_transcripts(self._path)
        return (line for line in lines if self._selected is None or line[0] in self._selected)


def _speaker(handle: str) -> str:
    return mls_layout.split_handle(handle)[0]


def _read_lines(
    folder: Path, language: Language, split: str, lines: Sequence[_Line], report: CorpusReport
) -> Iterator[tuple[Recording, SupervisionSegment]]:
    for line in lines:
        recording = _read_recording(folder, language, line)
        if not isinstance(recording, Recording):
            report.drop(language.code, split, *recording)
            continue
        report.add_notes(language.code, split, _notes(recording, line.gender))
        supervision = make_supervision(recording, line.normalized_text, language.code, line.speaker, line.gender)
        yield recording.resample(SAMPLE_RATE), supervision


def _read_recording(folder: Path, language: Language, line: _Line) -> Recording | tuple[Reason, str]:
    """Return the recording of an utterance, or the reason to drop it with a description of the problem."""
    handle, text = line.handle, line.normalized_text
    if line.problem is not None:
        return line.problem
    if foreign := foreign_characters(text, language):
        return Reason.FOREIGN_CHARACTERS, f"{handle} has {foreign!r} in {text!r}"
    if not text:
        return Reason.NO_TEXT, f"{handle} in {folder / mls_layout.TRANSCRIPTS_FILE}"
    path = _audio_path(folder, handle)
    if path is None:
        return (
            Reason.NO_AUDIO,
            f"{handle} is not below {folder / 'audio'}: expected SPEAKER/BOOK/SPEAKER_BOOK_INDEX.flac",
        )
    try:
        recording = read_recording(path, handle)
    except Exception as error:  # audio backends raise exceptions of many types
        return Reason.UNREADABLE, f"{path}: {last_line(error)}"
    return recording if recording.num_samples else (Reason.UNREADABLE, f"{path}: it holds no samples")


def _notes(recording: Recording, gender: str | None) -> list[str]:
    return [
        note
        for note, applies in (
            (Note.RESAMPLED, recording.sampling_rate != SAMPLE_RATE),
            (Note.DOWNMIXED, recording.num_channels > 1),
            (_UNKNOWN_SPEAKER, gender is None),
        )
        if applies
    ]


def _audio_path(folder: Path, handle: str) -> Path | None:
    if not all(_NAME.fullmatch(part) for part in mls_layout.split_handle(handle)):
        return None  # prevents handles that name files outside the corpus
    paths = (mls_layout.audio_file(folder, handle, suffix) for suffix in mls_layout.AUDIO_SUFFIXES)
    # Path.is_file raises OSError for names that are too long.
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


def _read_transcripts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield handles and texts."""
    if not path.is_file():
        raise CorpusError(
            f"no {path}: a split in MLS layout has a {mls_layout.TRANSCRIPTS_FILE} with a line HANDLE<tab>TEXT per "
            "utterance"
        )
    for line in read_lines(path):
        handle, _, text = line.strip().partition("\t")
        if handle:
            yield handle.strip(), text


def _read_genders(path: Path) -> dict[str, str]:
    """Return genders by speaker; empty without the file, so that every utterance gets a note."""
    if not path.is_file():
        return {}
    rows = (line.split("|") for line in read_lines(path))
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _limited_handles(folder: Path, subset: str) -> set[str]:
    handles: set[str] = set()
    for part in SUBSETS[subset]:
        files = sorted((folder / part).rglob(mls_layout.HANDLES_FILE))
        if not files:
            raise CorpusError(
                f"no {mls_layout.HANDLES_FILE} below {folder / part}: the corpus lacks this subset, use --subset train"
            )
        for file in files:
            handles.update(line.strip() for line in read_lines(file))
    return handles - {""}


def _check_splits(folder: Path) -> None:
    missing = [split for split in SPLITS if not (folder / split).is_dir()]
    if missing:
        existing = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
        raise CorpusError(
            f"{folder} lacks the split {', '.join(missing)} (found: {existing}): training requires train, dev, and "
            "test; complete the folder, or remove the language from --languages"
        )
