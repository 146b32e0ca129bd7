"""Spoken phrases of Tux Paint's stamps in nine languages, from Debian's package tuxpaint-stamps-default (GPL-2).

```
**/X.txt              lines LANGUAGE.utf8=TEXT
**/X_desc_LANGUAGE.ogg
```

The phrases of the languages are translations of each other, and most languages have a single reader. All clips of a
phrase X are in one split, with those of other phrases that have the same text in any of the languages.
"""

import os
import re
import shutil
import statistics
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from icefall_pathways.corpora.archives import unpack
from icefall_pathways.corpora.clips import Clip, held_out_note, write_clips
from icefall_pathways.corpora.recordings import read_recording
from icefall_pathways.corpora.splitting import assign, connected_groups, sentence_key
from icefall_pathways.corpora.validation import CorpusError, CorpusReport, Reason
from icefall_pathways.files import read_lines
from icefall_pathways.languages import Language, LanguageCode, get_language
from icefall_pathways.sharding.executors import Workers

CORPUS = "stamps"  # first part of the names of manifests
PACKAGE = "tuxpaint-stamps-default"

_LANGUAGES = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
_SHARES = {"test": 0.15, "dev": 0.1}
_AUDIO = re.compile(r"(.+)_desc_(\w+)\.ogg")
_TEXT = re.compile(r"(\w+)\.utf8\s*=(.*)")
_NUMBERS = "numbers in the transcript"  # reasons to drop a clip
_MISMATCH = "duration does not match the transcript"
_MAX_SPEEDUP = 2.0  # relative to the median rate of the language, in characters per second
_MAX_SLOWDOWN = 3.0
_MAX_SILENCE = 2.0  # seconds


class Phrase(NamedTuple):
    """A clip of the corpus, before it is checked.

    Attributes:
      name: Path of the stamp without suffix, the same in all languages.
      language: Language code.
      path: The audio file.
      text: The transcript; "" if there is none.
    """

    name: str
    language: LanguageCode
    path: Path
    text: str


def acquire(corpus_dir: Path, languages: Sequence[Language], num_jobs: int) -> None:
    """Download the package with apt-get, which needs no privileges and installs nothing, unless it is in `corpus_dir`.

    Raises:
      CorpusError: apt-get is missing or fails.
    """
    if _packages(corpus_dir):
        return
    advice = (
        f"get the package {PACKAGE} from a Debian mirror, and pass the file, or its unpacked folder, to --corpus-dir"
    )
    if shutil.which("apt-get") is None:
        raise CorpusError(f"this machine has no apt-get to download {PACKAGE}: {advice}")
    corpus_dir.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=corpus_dir, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CorpusError(
            f"apt-get download {PACKAGE} failed ({done.stderr.strip() or done.returncode}): run apt-get update first, "
            f"or {advice}"
        )


def prepare_manifests(
    corpus_dir: Path, output_dir: Path, languages: Sequence[Language], subset: str, workers: Workers | None = None
) -> CorpusReport:
    """Write the manifests of all splits; see `CorpusModule`.

    Args:
      corpus_dir: The unpacked package or any folder in its layout, the package (a .deb file), or its folder.
      output_dir: Folder for the manifests; a package is unpacked beside it.
      languages: Languages to prepare; they do not change the splits.
      subset: "train".
      workers: Read the audio headers; None reads them in this process.

    Raises:
      CorpusError: There are no clips, or the package cannot be unpacked.
    """
    folder = _unpacked(corpus_dir, output_dir.parent / CORPUS)
    phrases = list(_read_phrases(folder))
    try:
        splits = _divide(phrases)
    except CorpusError as error:
        raise CorpusError(f"{folder} has too few phrases ({error}): complete the folder") from error
    report = CorpusReport()
    for language in languages:
        selected = [phrase for phrase in phrases if phrase.language == language.code]
        if not selected:
            raise CorpusError(f"no *_desc_{language.code}.ogg in {folder}: check --corpus-dir and --languages")
        clips = [
            _with_split(clip, splits.get(phrase.name)) for phrase, clip in zip(selected, _clips(selected), strict=True)
        ]
        report.add(write_clips(CORPUS, output_dir, language, clips, workers))
    return report


def _packages(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PACKAGE}*.deb"))


def _unpacked(corpus_dir: Path, target: Path) -> Path:
    """Return a folder with the files of the corpus; unpack the package to `target` if necessary."""
    packages = [corpus_dir] if corpus_dir.is_file() else _packages(corpus_dir)
    if not packages:
        if next(corpus_dir.rglob("*_desc_*.ogg"), None) is None:
            raise CorpusError(
                f"neither *_desc_LANGUAGE.ogg nor {PACKAGE}*.deb in {corpus_dir}: expected the package {PACKAGE}, or "
                "its unpacked folder"
            )
        return corpus_dir
    mark = target / ".complete"
    if not mark.exists():
        _unpack_package(packages[-1], target)
        mark.touch()
    return target


def _unpack_package(package: Path, target: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise CorpusError(
            f"this machine has no dpkg-deb to unpack {package}: unpack it with `ar x` and data.tar.* with `tar xf`, "
            "and pass the folder to --corpus-dir"
        )
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                unpack(
                    tar, package, target, lambda path: path.suffix == ".txt" or _AUDIO.fullmatch(path.name) is not None
                )
        except tarfile.TarError as error:
            raise CorpusError(f"cannot unpack {package} ({error}): remove it and download it again") from error
        finally:
            process.kill()


def _read_phrases(folder: Path) -> Iterator[Phrase]:
    """Yield the clips of all languages, in the order of their paths.

    Names, which determine the splits, are relative to the common parent folder of all clips, so that they are the same
    for the package, the unpacked package, and its folder of stamps.
    """
    paths = sorted(folder.rglob("*_desc_*.ogg"))
    root = Path(os.path.commonpath([path.parent for path in paths]))
    for path in paths:
        match = _AUDIO.fullmatch(path.relative_to(root).as_posix())
        if match and match[2] in _LANGUAGES:
            text = _read_texts(root / f"{match[1]}.txt").get(match[2], "")
            yield Phrase(match[1], LanguageCode(match[2]), path, text)


def _read_texts(path: Path) -> dict[str, str]:
    """Return the texts of a stamp by language."""
    matches = [_TEXT.fullmatch(line.strip()) for line in read_lines(path)] if path.is_file() else []
    return {match[1]: match[2].strip() for match in matches if match}


def _divide(phrases: Sequence[Phrase]) -> dict[str, str]:
    """Return the split of each phrase, by name; it depends on all languages."""
    texts = [(phrase.language, sentence_key(phrase.text, get_language(phrase.language))) for phrase in phrases]
    groups = connected_groups(
        [phrase.name, text] if text[1] else [phrase.name] for phrase, text in zip(phrases, texts, strict=True)
    )
    keys = [phrases[group].name for group in groups]
    splits = assign(keys, _SHARES)
    return {phrase.name: split for phrase, split in zip(phrases, splits, strict=True)}


def _clips(phrases: Sequence[Phrase]) -> list[Clip]:
    """Return the clips of one language; unusable ones have a reason."""
    clips = [_clip(phrase) for phrase in phrases]
    durations = {clip.id: duration for clip in clips if (duration := _duration(clip))}
    rates = [len(clip.text) / durations[clip.id] for clip in clips if clip.id in durations]
    median = statistics.median(rates) if rates else 0.0
    return [_check_duration(clip, durations.get(clip.id), median) for clip in clips]


def _clip(phrase: Phrase) -> Clip:
    clip = Clip(f"{phrase.language}-{phrase.name.replace('/', '-')}", phrase.path, phrase.text)
    if not phrase.text:
        return clip.reject(Reason.NO_TRANSCRIPT, f"{phrase.path}: no line {phrase.language}.utf8= in {phrase.name}.txt")
    if re.search(r"\d", phrase.text):
        return clip.reject(_NUMBERS, f"{clip.id}: {phrase.text!r}")
    return clip


def _duration(clip: Clip) -> float | None:
    """Return the duration in seconds; None for dropped clips and for unreadable ones, which are counted later."""
    if clip.problem:
        return None
    try:
        return float(read_recording(clip.path, clip.id).duration)
    except Exception:  # audio backends raise exceptions of many types
        return None


def _check_duration(clip: Clip, duration: float | None, median: float) -> Clip:
    """Reject a clip that is spoken much faster or slower than the median of its language, in characters per second."""
    if not duration:
        return clip
    expected = len(clip.text) / median
    if expected / _MAX_SPEEDUP <= duration <= expected * _MAX_SLOWDOWN + _MAX_SILENCE:
        return clip
    return clip.reject(_MISMATCH, f"{clip.id} has {len(clip.text)} characters in {duration:.1f} s: {clip.text!r}")


def _with_split(clip: Clip, split: str | None) -> Clip:
    notes = (held_out_note("phrase"),) if split in _SHARES else ()
    return clip._replace(split=split, notes=notes)
