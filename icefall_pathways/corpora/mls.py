"""Multilingual LibriSpeech: a folder in the layout of OpenSLR 94 becomes Lhotse manifests.

Any folder in this layout is read, with any of the languages; audio is flac or opus. Lines and files that cannot be used
are counted, not passed over.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from tqdm import tqdm

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.corpora.download import DownloadConfig, download_mls
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, write_manifests
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Note, Reason, foreign_characters
from icefall_pathways.errors import last_line
from icefall_pathways.languages import Language

CORPUS = "mls"  # first part of the names of manifests
# Training data: all of it, or folders of the limited supervision. MLS's ten hours are these two together.
SUBSETS = {"train": (), "10hr": ("9hr", "1hr"), "9hr": ("9hr",), "1hr": ("1hr",)}

_AUDIO_SUFFIXES = (".flac", ".opus")
_MAX_PENDING = 10_000  # utterances; English has ten million, which are not held all at once


def language_folder(corpus_dir: Path, language: Language) -> Path:
    """The folder of one language: mls_<name>, or mls_<name>_opus.

    Raises:
      CorpusError: There is neither.
    """
    names = (f"mls_{language.name}", f"mls_{language.name}_opus")
    for name in names:
        if (corpus_dir / name).is_dir():
            return corpus_dir / name
    found = (
        ", ".join(sorted(path.name for path in corpus_dir.glob("mls_*"))) if corpus_dir.is_dir() else "no such folder"
    )
    raise CorpusError(
        f"no {' or '.join(names)} in {corpus_dir} (found: {found or 'nothing'}): check --corpus-dir and --languages"
    )


def acquire(corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
    """Download the corpus with default options, see `CorpusModule`; files are downloaded one after the other."""
    download_mls(DownloadConfig(corpus_dir, " ".join(language.code for language in languages)))


def prepare_manifests(
    corpus_dir: Path, output_dir: Path, languages: Sequence[Language], subset: str = "train", num_jobs: int = 4
) -> CorpusReport:
    """Write the recording and supervision manifests of all splits; a finished split is read back, not made again.

    Args:
      corpus_dir: The folder that holds mls_<language> folders.
      output_dir: Where manifests go.
      languages: Which languages.
      subset: Training data: "train" (all), or the limited supervision: "10hr", or one of its parts "9hr" and "1hr".
      num_jobs: Files whose headers are read at the same time.

    Returns:
      What was kept and what was left out.

    Raises:
      CorpusError: A folder, split or transcript file is missing.
    """
    if subset not in SUBSETS:
        raise CorpusError(f"--subset {subset!r}: expected one of {', '.join(SUBSETS)}")
    report = CorpusReport()
    for language in languages:
        folder = language_folder(corpus_dir, language)
        _check_splits(folder)
        genders = _read_genders(folder / "metainfo.txt")
        for split in SPLITS:
            files = SplitFiles(output_dir, CORPUS, language, split)
            read = partial(_read_split, folder / split, language, split, subset, genders, num_jobs)
            report.add(write_manifests(files, read))
    return report


def _read_split(
    folder: Path,
    language: Language,
    split: str,
    subset: str,
    genders: dict[str, str],
    num_jobs: int,
    report: CorpusReport,
) -> Iterator[tuple[Recording, SupervisionSegment]]:
    path = folder / "transcripts.txt"
    chosen = None if split != "train" or subset == "train" else _limited_handles(folder / "limited_supervision", subset)
    lines = (line for line in _read_transcripts(path) if chosen is None or line[0] in chosen)
    total = sum(1 for _ in _read_transcripts(path)) if chosen is None else len(chosen)
    seen: set[str] = set()
    with (
        tqdm(desc=f"{language.code} {split}", total=total, unit="file", leave=False) as bar,
        ThreadPoolExecutor(num_jobs) as pool,
    ):
        while some := list(islice(lines, _MAX_PENDING)):
            found = pool.map(partial(_read_recording, folder, language), some)
            for (handle, text), recording in zip(some, found, strict=True):
                bar.update()
                if handle in seen:
                    recording = Reason.NAMED_TWICE, f"{handle} in {path}"
                seen.add(handle)
                if not isinstance(recording, Recording):
                    report.drop(language.code, split, *recording)
                    continue
                speaker = handle.split("_")[0]
                report.keep(language.code, split, _notes(recording, speaker, genders))
                yield recording.resample(SAMPLE_RATE), _supervision(handle, text, recording, speaker, language, genders)


def _read_recording(folder: Path, language: Language, line: tuple[str, str]) -> Recording | tuple[Reason, str]:
    """The recording of an utterance, or why it cannot be used, with what was found."""
    handle, text = line
    if foreign := foreign_characters(text, language):
        return Reason.FOREIGN_CHARACTERS, f"{handle} has {foreign!r} in {text!r}"
    if not text.strip():
        return Reason.NO_TEXT, f"{handle} in {folder / 'transcripts.txt'}"
    path = _audio_path(folder, handle)
    if path is None:
        return Reason.NO_AUDIO, f"{handle} is not below {folder / 'audio'}"
    try:
        recording = Recording.from_file(path, recording_id=handle)
    except Exception as error:  # the audio backends raise whatever they like
        return Reason.UNREADABLE, f"{path}: {last_line(error)}"
    return recording if recording.num_samples else (Reason.UNREADABLE, f"{path}: it holds no samples")


def _notes(recording: Recording, speaker: str, genders: dict[str, str]) -> list[Note]:
    return [
        note
        for note, applies in (
            (Note.RESAMPLED, recording.sampling_rate != SAMPLE_RATE),
            (Note.DOWNMIXED, recording.num_channels > 1),
            (Note.UNKNOWN_SPEAKER, speaker not in genders),
        )
        if applies
    ]


def _supervision(
    handle: str, text: str, recording: Recording, speaker: str, language: Language, genders: dict[str, str]
) -> SupervisionSegment:
    return SupervisionSegment(
        id=handle,
        recording_id=handle,
        start=0.0,
        duration=recording.duration,
        channel=recording.channel_ids if recording.num_channels > 1 else 0,
        text=text.strip(),
        language=language.code,
        speaker=speaker,
        gender=genders.get(speaker),
    )


def _audio_path(folder: Path, handle: str) -> Path | None:
    parts = handle.split("_")
    if len(parts) != 3 or not all(part.isalnum() for part in parts):
        return None  # also keeps a handle from naming a file outside the corpus
    for suffix in _AUDIO_SUFFIXES:
        path = folder / "audio" / parts[0] / parts[1] / f"{handle}{suffix}"
        if path.is_file():
            return path
    return None


def _read_transcripts(path: Path) -> Iterator[tuple[str, str]]:
    """Handles and texts; letters with accents are one character each, however they were written (NFC)."""
    if not path.is_file():
        raise CorpusError(
            f"no {path}: a split in MLS layout holds transcripts.txt, a line HANDLE<tab>TEXT per utterance"
        )
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line in file:
                handle, _, text = line.strip().partition("\t")
                if handle:
                    yield handle.strip(), unicodedata.normalize("NFC", text)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path} is not in UTF-8 ({error}): convert it, such as by iconv -f latin1 -t utf-8"
            ) from error


def _read_genders(path: Path) -> dict[str, str]:
    """Gender by speaker; empty where there is no metainfo.txt, so that all its speakers are noted as unknown."""
    if not path.is_file():
        return {}
    rows = (line.split("|") for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _limited_handles(folder: Path, subset: str) -> set[str]:
    handles: set[str] = set()
    for part in SUBSETS[subset]:
        files = sorted((folder / part).rglob("handles.txt"))
        if not files:
            raise CorpusError(
                f"no handles.txt below {folder / part}: this corpus has no such subset, use --subset train"
            )
        for file in files:
            handles.update(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return handles


def _check_splits(folder: Path) -> None:
    missing = [split for split in SPLITS if not (folder / split).is_dir()]
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
        raise CorpusError(
            f"{folder} lacks the split {', '.join(missing)} (found: {found}): training needs train, dev and test; "
            "complete the folder, or leave the language out of --languages"
        )
