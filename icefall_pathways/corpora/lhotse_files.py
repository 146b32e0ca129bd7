"""Manifests in Lhotse's formats: find the files of folders, and read their utterances as JSON values.

The files contain recordings with supervisions, or cuts, as JSON lines. File names state the split, such as
`cv-fr_recordings_train.jsonl.gz` or `librispeech_cuts_dev-clean.jsonl`.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icefall_pathways.corpora.splitting import split_of
from icefall_pathways.corpora.validation import CorpusError, Reason, Rejection
from icefall_pathways.errors import as_damage, first_line, quote
from icefall_pathways.ranges import Range, parse_numbers
from icefall_pathways.sharding.jsonl import read_lines

_FILE_NAME = re.compile(r"(.*?)(?<![^_.-])(recordings|supervisions|cuts)(?=[_.-])(.*?)\.jsonl(?:\.gz)?")
_MIXED_CUT = "cut of several recordings"  # reason to drop an utterance
_WEIGHT = Range(0, open_minimum=True)


class ManifestFile(NamedTuple):
    """A supervision manifest with its recordings, or a manifest of cuts.

    Attributes:
      path: The supervisions or cuts.
      recordings: The recordings of the supervisions; None for cuts.
      split: The split that the names state.
      source: Name of the corpus, the first part of ids; "" if there is only one.
      weight: Weight of the corpus.
    """

    path: Path
    recordings: Path | None
    split: str | None
    source: str = ""
    weight: float = 1.0


class Entry(NamedTuple):
    """An utterance as its manifests describe it.

    Attributes:
      recording: Recording as a JSON value; None if there is none.
      supervision: Supervision as a JSON value, with times in the recording.
      file: The file that it is from.
      problem: Reason to drop it, and a description.
      note: Property for the report.
    """

    recording: dict[str, Any] | None
    supervision: dict[str, Any]
    file: ManifestFile
    problem: Rejection | None = None
    note: str = ""


def find_manifests(corpus_dir: Path, weights: str = "") -> list[ManifestFile]:
    """Return the manifests of one or several folders with their subfolders, in the order of their paths.

    Args:
      corpus_dir: The folder, or several folders, separated by spaces.
      weights: A weight per folder, separated by spaces; "": 1 for all.

    Raises:
      CorpusError: A folder does not exist or has no manifests, or the number of weights is not that of the folders.
    """
    folders = [corpus_dir] if corpus_dir.is_dir() else [Path(word) for word in str(corpus_dir).split()]
    numbers = parse_numbers("--manifest-weights", weights, float, _WEIGHT) if weights else [1.0] * len(folders)
    if len(numbers) != len(folders):
        raise CorpusError(
            f"--manifest-weights {weights!r} has {len(numbers)} weights for {len(folders)} folders of manifests: "
            "expected a weight per folder, in the same order"
        )
    sources = [folder.name or f"corpus{i}" for i, folder in enumerate(folders)] if len(folders) > 1 else [""]
    if len(set(sources)) < len(sources):
        sources = [f"{source}-{i}" for i, source in enumerate(sources, start=1)]
    return [
        file._replace(source=source, weight=weight)
        for folder, source, weight in zip(folders, sources, numbers, strict=True)
        for file in _files_of(folder)
    ]


def _files_of(folder: Path) -> list[ManifestFile]:
    """Return the manifests of a folder; those whose names state no split only if none does."""
    if not folder.is_dir():
        raise CorpusError(f"--manifests: {folder} is not a folder: expected folders of manifests, separated by spaces")
    paths: dict[tuple[Path, str, str], dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.jsonl*")):
        if match := _FILE_NAME.fullmatch(path.name):
            prefix, kind, rest = match.groups()
            paths.setdefault((path.parent, prefix, rest), {})[kind] = path
    files = [
        file
        for (_, prefix, rest), kinds in paths.items()
        if (file := _manifest_file(kinds, _split_in(rest) or _split_in(prefix)))
    ]
    if not files:
        raise CorpusError(
            f"no manifests in {folder}: expected *_recordings_*.jsonl.gz with *_supervisions_*.jsonl.gz of the same "
            "name, or *_cuts_*.jsonl.gz, as `lhotse prepare` writes them"
        )
    return [file for file in files if file.split] or files


def _manifest_file(kinds: dict[str, Path], split: str | None) -> ManifestFile | None:
    """Return a manifest from the paths of recordings, supervisions and cuts with the same name, if it is complete."""
    if "supervisions" in kinds and "recordings" in kinds:
        return ManifestFile(kinds["supervisions"], kinds["recordings"], split)
    return ManifestFile(kinds["cuts"], None, split) if "cuts" in kinds else None


def _split_in(text: str) -> str | None:
    """Return the split that a part of a file name states, such as "train" for "train-clean-100"."""
    return next((split for word in re.split(r"[\W_]+", text) if (split := split_of(word))), None)


def read_supervisions(file: ManifestFile) -> Iterator[dict[str, Any]]:
    """Yield the supervisions of a file, without their recordings; see `read_entries` for errors."""
    for entry in _entries(file, None):
        yield entry.supervision


def read_entries(file: ManifestFile) -> Iterator[Entry]:
    """Yield the utterances of a file.

    Raises:
      CorpusError: A manifest is damaged.
    """
    yield from _entries(file, None if file.recordings is None else _Recordings(file.recordings))


def _entries(file: ManifestFile, recordings: "_Recordings | None") -> Iterator[Entry]:
    with as_damage(file.path, CorpusError, "write it again"):
        for entry in _read_cuts(file) if file.recordings is None else _read_pairs(file, recordings):
            _check_supervision(entry.supervision)
            yield entry


def _check_supervision(supervision: dict[str, Any]) -> None:
    """Check the fields that decide the split and the language."""
    for name in ("id", "text", "speaker", "language"):
        value = supervision.get(name)
        if not _is_encodable(value) and (name == "id" or value is not None):
            raise ValueError(f"the {name} of supervision {supervision.get('id')!r} is {value!r}, expected a string")


def _is_encodable(value: object) -> bool:
    """Return whether a value is a string that can be encoded in UTF-8: without surrogates."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


class _Recordings:
    """Recordings by id, read lazily: only up to the requested one, if supervisions have the order of the recordings.

    Args:
      path: The manifest.
    """

    def __init__(self, path: Path) -> None:
        self._records = _read_records(path)
        self._read: dict[str, dict[str, Any]] = {}

    def get(self, recording_id: str) -> dict[str, Any] | None:
        """Return a recording as a JSON value; None if there is none with this id."""
        while recording_id not in self._read:
            record = next(self._records, None)
            if record is None:
                return None
            self._read[str(record["id"])] = record
        return self._read[recording_id]


def _read_pairs(file: ManifestFile, recordings: _Recordings | None) -> Iterator[Entry]:
    for supervision in _read_records(file.path):
        if recordings is None:
            yield Entry(None, supervision, file)
            continue
        recording_id = str(supervision["recording_id"])
        recording = recordings.get(recording_id)
        description = f"{supervision['id']} in {file.path}: {file.recordings} has no recording {recording_id}"
        yield Entry(recording, supervision, file, None if recording else Rejection(Reason.NO_AUDIO, description))


def _read_cuts(file: ManifestFile) -> Iterator[Entry]:
    for cut in _read_records(file.path):
        tracks = [track["cut"] for track in cut.get("tracks", ())]
        for part in tracks or [cut]:
            for supervision in part.get("supervisions", ()):
                moved = supervision | {"start": part["start"] + supervision["start"]}
                yield Entry(part.get("recording"), moved, file, _problem_of_cut(cut, file.path))


def _problem_of_cut(cut: dict[str, Any], path: Path) -> Rejection | None:
    if "tracks" in cut:
        return Rejection(_MIXED_CUT, f"{cut['id']} in {path}")
    has_audio = bool(cut.get("recording"))
    return None if has_audio else Rejection(Reason.NO_AUDIO, f"{cut['id']} in {path} has no recording")


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    num_lines = 0
    try:
        for line in read_lines(path):
            num_lines += 1
            record = json.loads(line)
            if not isinstance(record, dict) or "id" not in record:
                raise ValueError(f"{quote(line.decode(errors='replace'))} is not a record of Lhotse with an id")
            yield record
    except (EOFError, OSError, zlib.error, ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is damaged at line {num_lines} ({first_line(error)}): write it again") from error


def language_name(supervision: Mapping[str, Any]) -> str:
    """Return the language as a supervision names it; "none" if it names none."""
    return supervision.get("language") or "none"


def language_counts(file: ManifestFile) -> dict[str, int]:
    """Return the number of supervisions by the language as they name it."""
    counts: dict[str, int] = {}
    for supervision in read_supervisions(file):
        name = language_name(supervision)
        counts[name] = counts.get(name, 0) + 1
    return counts


def resolve_paths(recording: dict[str, Any], manifest: Path) -> dict[str, Any]:
    """Return a recording whose relative paths are replaced by absolute ones.

    Lhotse writes paths as they were typed. They are searched for in the working directory, in the folder of the
    manifest and in the folders above it; paths of missing files are not changed.
    """
    sources = recording.get("sources", ())
    return recording | {"sources": [_resolve_source(source, manifest) for source in sources]}


def _resolve_source(source: dict[str, Any], manifest: Path) -> dict[str, Any]:
    if source.get("type") != "file" or Path(str(source["source"])).is_absolute():
        return source
    candidates: Sequence[Path] = [Path.cwd(), *manifest.absolute().parents]
    paths = (folder / str(source["source"]) for folder in candidates)
    return source | {"source": str(next((path for path in paths if path.is_file()), source["source"]))}
