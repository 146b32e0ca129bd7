"""A folder of audio files and their transcripts, one subfolder per language.

```
DIR/french/, DIR/de/, ...            a folder per language, named by its English name or code
  **/x.wav, .flac, .mp3, .ogg, .opus
  **/x.txt                           the transcript of x, or
  metadata.csv, transcripts.tsv      the transcripts of many files, see `transcript_tables`
  train/, dev/, test/                splits, if given; other subfolders are taken as speakers
```
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from icefall_pathways.corpora.clips import Clip, divide_clips, write_clips
from icefall_pathways.corpora.splitting import split_of
from icefall_pathways.corpora.transcript_tables import TABLE_NAMES, Row, read_table
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason, Rejection
from icefall_pathways.files import read_text
from icefall_pathways.languages import Language, LanguageCode, get_language
from icefall_pathways.sharding.executors import Workers

CORPUS = "folder"  # first part of the names of manifests
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")

_MAX_LISTED = 10  # names in a message
_NOT_UTF8 = "transcript not in UTF-8"  # reason to drop a clip

_AUDIO_FOLDERS = ("audio", "clips", "data", "flac", "mp3", "wav", "wavs")  # subfolders that are not speakers


def discover_languages(corpus_dir: Path) -> list[LanguageCode]:
    """Return the languages of the subfolders that hold audio, by code.

    Raises:
      CorpusError: There are none.
    """
    languages = {language.code for language, folder in _language_folders(corpus_dir) if _has_audio(folder)}
    if not languages:
        raise CorpusError(
            f"no audio of a language in {corpus_dir} (found: {_list_content(corpus_dir)}): expected a folder per "
            f"language, named by its code or English name, such as {corpus_dir / 'french'}, with files "
            f"*{', *'.join(AUDIO_SUFFIXES)} and their transcripts"
        )
    return sorted(languages)


def _list_content(path: Path) -> str:
    if path.is_file():
        return "a file"
    entries = path.iterdir() if path.is_dir() else ()
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    more = [f"and {len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
    return ", ".join(names[:_MAX_LISTED] + more) or "nothing"


def prepare_manifests(
    corpus_dir: Path, output_dir: Path, languages: Sequence[Language], subset: str, workers: Workers | None = None
) -> CorpusReport:
    """Write the manifests of all splits; see `CorpusModule`.

    Raises:
      CorpusError: A language has no folder, or too few usable clips for three splits.
    """
    report = CorpusReport()
    for language in languages:
        folders = [folder for other, folder in _language_folders(corpus_dir) if other.code == language.code]
        if not folders:
            raise CorpusError(
                f"no folder of {language.name} in {corpus_dir}: expected {corpus_dir / language.code} or "
                f"{corpus_dir / language.name}; check --corpus-dir and --languages"
            )
        clips = _with_ids(language, [clip for folder in folders for clip in read_clips(folder)])
        divided = divide_clips(language, list(clips), corpus_dir)
        report.add(write_clips(CORPUS, output_dir, language, divided, workers))
    return report


def _language_folders(corpus_dir: Path) -> Iterator[tuple[Language, Path]]:
    """Yield the subfolders that are named by a language, in the order of their names.

    Three letters may be a code: dev and wav are not taken as languages.
    """
    for folder in sorted(corpus_dir.iterdir()) if corpus_dir.is_dir() else ():
        if folder.is_dir() and not split_of(folder.name) and folder.name.lower() not in _AUDIO_FOLDERS:
            with suppress(ValueError):
                yield get_language(folder.name), folder


def _has_audio(folder: Path) -> bool:
    return any(path.suffix.lower() in AUDIO_SUFFIXES for path in _files(folder))


def read_clips(folder: Path) -> list[Clip]:
    """Return the clips of a language, with the reasons to drop those that have no transcript or no audio."""
    audio = {
        path.relative_to(folder).as_posix(): path for path in _files(folder) if path.suffix.lower() in AUDIO_SUFFIXES
    }
    rows = _rows_by_audio(folder, audio)
    clips = [_clip(name, path, rows.pop(name, [])) for name, path in audio.items()]
    return clips + [_without_audio(folder, row) for table_rows in rows.values() for row in table_rows]


def _files(folder: Path) -> list[Path]:
    """Return all files but hidden ones, such as those that macOS adds, also those in linked folders."""
    files, visited = [], {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        targets = {os.path.realpath(Path(parent, name)): name for name in sorted(folders, reverse=True)}
        folders[:] = [name for target, name in targets.items() if target not in visited]
        visited.update(targets)
        files += [path for name in names if name[0] not in "._" and (path := Path(parent, name)).is_file()]
    return sorted(files)


def _rows_by_audio(folder: Path, audio: Collection[str]) -> dict[str, list[Row]]:
    """Return the rows of all tables by the audio file that they name, or by their own name if there is no such file."""
    ends: dict[str, list[str]] = defaultdict(list)  # ends of paths, with and without suffix
    for name in audio:
        parts = name.split("/")
        for i in range(len(parts)):
            end = "/".join(parts[i:])
            ends[end].append(name)
            ends[_stem(end)].append(name)
    rows: dict[str, list[Row]] = defaultdict(list)
    for path in _files(folder):
        if path.name in TABLE_NAMES:
            base = path.parent.relative_to(folder)
            for row in read_table(path):
                rows[_audio_of(row, base, audio, ends)].append(row)
    return rows


def _audio_of(row: Row, base: Path, audio: Collection[str], ends: Mapping[str, list[str]]) -> str:
    """Return the audio file that a row names, relative to its table or by the end of its path; else what it names."""
    name = (base / row.file).as_posix()
    if name in audio:
        return name
    matches = ends.get(name) or ends.get(row.file) or []
    return matches[0] if len(matches) == 1 else row.file


def _stem(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def _clip(name: str, path: Path, rows: Sequence[Row]) -> Clip:
    """Return the clip of an audio file; `rows` are the rows of tables that name it."""
    *parents, _ = name.split("/")
    split = next((split_of(parent) for parent in parents if split_of(parent)), None)
    speakers = [parent for parent in parents if not split_of(parent) and parent.lower() not in _AUDIO_FOLDERS]
    clip = Clip(_stem(name), path, speaker=speakers[0] if speakers else "", split=split)
    if len(rows) > 1:
        return clip.reject(Reason.DUPLICATE, f"{path} has {len(rows)} rows")
    if rows:
        (row,) = rows
        return clip._replace(
            text=row.text, speaker=row.speaker or clip.speaker, split=split_of(row.split) or clip.split
        )
    text_file = path.with_suffix(".txt")
    if not text_file.is_file():
        return clip.reject(Reason.NO_TRANSCRIPT, f"{path}: there is neither {text_file.name} nor a row in a table")
    try:
        return clip._replace(text=read_text(text_file))
    except ValueError as error:
        return clip.reject(_NOT_UTF8, str(error))


def _without_audio(folder: Path, row: Row) -> Clip:
    description = f"{row.file} is in a table, but it is not the name of exactly one audio file in {folder}"
    return Clip(_stem(row.file), folder, problem=Rejection(Reason.NO_AUDIO, description))


def _with_ids(language: Language, clips: Sequence[Clip]) -> Iterator[Clip]:
    """Yield clips with unique ids of letters, digits, hyphens and underscores, which are safe in file names.

    Of several clips with the same name, such as x.mp3 beside x.wav, all but the first get a reason to drop them.
    """
    names = {clip.id for clip in clips}
    counts = Counter(map(_safe, names))
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen and not clip.problem:
            clip = clip.reject(Reason.DUPLICATE, f"{clip.path}: another file has this name and another suffix")
        seen.add(clip.id)
        digest = hashlib.blake2b(clip.id.encode(errors="surrogateescape"), digest_size=4).hexdigest()
        suffix = f"-{digest}" if counts[_safe(clip.id)] > 1 else ""
        yield clip._replace(id=f"{language.code}-{_safe(clip.id)}{suffix}")


def _safe(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name.replace("/", "-"))
