"""Multilingual LibriSpeech: a folder in the layout of OpenSLR 94 becomes Lhotse manifests.

Any folder in this layout is read, with any of the languages; audio is flac or opus. Lines and files that cannot be used
are counted, not passed over.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Note, Reason, foreign_characters
from icefall_pathways.files import atomic_write
from icefall_pathways.languages import Language

SPLITS = ("train", "dev", "test")
SUBSETS = ("train", "9hr", "1hr")
SAMPLE_RATE = 16000

_AUDIO_SUFFIXES = (".flac", ".opus")


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


def manifest_paths(output_dir: Path, language: Language, split: str) -> tuple[Path, Path]:
    """Where the recordings and the supervisions of a split are, named as `lhotse prepare mls` names them."""
    return (
        output_dir / f"mls-{language.name}_recordings_{split}.jsonl.gz",
        output_dir / f"mls-{language.name}_supervisions_{split}.jsonl.gz",
    )


def prepare_manifests(
    corpus_dir: Path, output_dir: Path, languages: list[Language], subset: str = "train", num_jobs: int = 4
) -> CorpusReport:
    """Write the recording and supervision manifests of all splits; a finished split is read back, not made again.

    Args:
      corpus_dir: The folder that holds mls_<language> folders.
      output_dir: Where manifests go.
      languages: Which languages.
      subset: Training data: "train" (all), or the limited supervision of "9hr" or "1hr" (the ten hours' two parts).
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
            report.add(_prepare_split(folder, output_dir, language, split, subset, genders, num_jobs))
    return report


def _prepare_split(
    folder: Path, output_dir: Path, language: Language, split: str, subset: str, genders: dict[str, str], num_jobs: int
) -> CorpusReport:
    recordings_path, supervisions_path = manifest_paths(output_dir, language, split)
    report_path = output_dir / f"mls-{language.name}_report_{split}.json"
    if recordings_path.exists() and supervisions_path.exists() and report_path.exists():
        return CorpusReport.load(report_path)
    report = CorpusReport()
    recordings, supervisions = [], []
    for recording, supervision in _read_split(folder / split, language, split, subset, genders, report, num_jobs):
        recordings.append(recording)
        supervisions.append(supervision)
    for path, manifest in (
        (recordings_path, RecordingSet.from_recordings(recordings)),
        (supervisions_path, SupervisionSet.from_segments(supervisions)),
    ):
        with atomic_write(path) as temporary:
            manifest.to_file(temporary)
    report.save(report_path)
    return report


def _read_split(
    folder: Path,
    language: Language,
    split: str,
    subset: str,
    genders: dict[str, str],
    report: CorpusReport,
    num_jobs: int,
) -> Iterator[tuple[Recording, SupervisionSegment]]:
    lines = _read_transcripts(folder / "transcripts.txt")
    if split == "train" and subset != "train":
        chosen = _limited_handles(folder / "limited_supervision" / subset)
        lines = [line for line in lines if line[0] in chosen]
    usable = []
    for handle, text in lines:
        if foreign := foreign_characters(text, language):
            report.drop(language.code, split, Reason.FOREIGN_CHARACTERS, f"{handle} has {foreign!r} in {text!r}")
        elif not text.strip():
            report.drop(language.code, split, Reason.NO_TEXT, f"{handle} in {folder / 'transcripts.txt'}")
        elif (path := _audio_path(folder, handle)) is None:
            report.drop(language.code, split, Reason.NO_AUDIO, f"{handle} is not below {folder / 'audio'}")
        else:
            usable.append((handle, text, path))
    with ThreadPoolExecutor(num_jobs) as pool:
        found = pool.map(_read_header, usable)
        for (handle, text, path), recording in zip(
            tqdm(usable, desc=f"{language.code} {split}", unit="file", leave=False), found, strict=True
        ):
            if isinstance(recording, str):
                report.drop(language.code, split, Reason.UNREADABLE, f"{path}: {recording}")
                continue
            speaker = handle.split("_")[0]
            report.keep(language.code, split, _notes(recording, speaker, genders))
            yield recording.resample(SAMPLE_RATE), _supervision(handle, text, recording, speaker, language, genders)


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


def _read_header(item: tuple[str, str, Path]) -> Recording | str:
    """The recording of a file, or why it cannot be read."""
    handle, _, path = item
    try:
        recording = Recording.from_file(path, recording_id=handle)
    except Exception as error:  # the audio backends raise whatever they like
        return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return recording if recording.num_samples else "it holds no samples"


def _audio_path(folder: Path, handle: str) -> Path | None:
    parts = handle.split("_")
    if len(parts) != 3 or not all(part.isalnum() for part in parts):
        return None  # also keeps a handle from naming a file outside the corpus
    for suffix in _AUDIO_SUFFIXES:
        path = folder / "audio" / parts[0] / parts[1] / f"{handle}{suffix}"
        if path.is_file():
            return path
    return None


def _read_transcripts(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise CorpusError(
            f"no {path}: a split in MLS layout holds transcripts.txt, a line HANDLE<tab>TEXT per utterance"
        )
    pairs = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return [(handle.strip(), text) for handle, _, text in pairs]


def _read_genders(path: Path) -> dict[str, str]:
    """Gender by speaker; empty where there is no metainfo.txt, so that all its speakers are noted as unknown."""
    if not path.is_file():
        return {}
    rows = (line.split("|") for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def _limited_handles(folder: Path) -> set[str]:
    files = sorted(folder.rglob("handles.txt"))
    if not files:
        raise CorpusError(f"no handles.txt below {folder}: this corpus has no such subset, use --subset train")
    return {line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()}


def _check_splits(folder: Path) -> None:
    missing = [split for split in SPLITS if not (folder / split).is_dir()]
    if missing:
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
        raise CorpusError(
            f"{folder} lacks the split {', '.join(missing)} (found: {found}): training needs train, dev and test; "
            "complete the folder, or leave the language out of --languages"
        )
