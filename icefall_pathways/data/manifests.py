"""Validate untrusted Lhotse manifests before reading anything they point to.

Audio and features may be anywhere in the file system, as in Lhotse. They are read from regular files only, no command
is run and no URL is opened for them, and the sizes that a manifest states have to be plausible.
"""

import json
import math
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from lhotse import Features, MonoCut, Recording
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.errors import as_damage, quote
from icefall_pathways.sharding.jsonl import read_lines

_MAX_DURATION = 24 * 3600.0  # seconds of a cut
_SAMPLING_RATES = range(1000, 384_001)
_TOLERANCE = 1.0  # seconds by which the stated and the computed duration may differ
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_INVALID_IN_NAMES = re.compile(r"[\0-\x1f\x7f\ud800-\udfff]")
# Lhotse's other types run commands, open URLs, or contain further recordings.
_ALLOWED_SOURCES = ("file", "memory")
_ALLOWED_TRANSFORMS = ("Speed", "Tempo", "Resample", "Volume", "LoudnessNormalization", "Narrowband")
_ALLOWED_STORAGES = (
    *("lilcom_chunky", "lilcom_files", "lilcom_hdf5", "chunked_lilcom_hdf5", "numpy_files", "numpy_hdf5"),
    *("memory_lilcom", "memory_raw"),
)


class DataError(ValueError):
    """Manifests or features are missing, damaged, or inconsistent."""


def damaged_manifest(path: Path, stage: int = 3) -> AbstractContextManager[None]:
    """Report exceptions other than DataError inside the context as damage of a manifest, see `as_damage`.

    Args:
      path: The manifest.
      stage: Stage of prepare.sh that writes it.

    Raises:
      DataError: The manifest is damaged.
    """
    return as_damage(path, DataError, f"remove it and run ./prepare.sh --stage {stage} for its language again")


def manifest_lines(path: Path, stage: int = 3) -> Iterator[bytes]:
    """Yield the lines of a manifest, without their ends; see `damaged_manifest`."""
    with damaged_manifest(path, stage):
        yield from read_lines(path)


def read_cuts(path: Path) -> Iterator[Cut]:
    """Yield the cuts of a manifest.

    Raises:
      DataError: It is damaged, or a cut is not trustworthy, see `check_cut`.
    """
    for line in manifest_lines(path):
        with damaged_manifest(path):
            cut = parse_cut(line, path)
        yield cut


def parse_cut(line: bytes, path: Path) -> Cut:
    """Return the cut of a line of a manifest. Damaged lines cause exceptions of many types.

    Raises:
      DataError: The cut refers to anything but files, or has an impossible size.
    """
    cut = deserialize_item(json.loads(line))
    check_cut(cut, path)
    return cut


def check_cut(cut: Cut, path: Path) -> None:
    """Check the metadata of a cut before its audio or features are read.

    Args:
      cut: An entry of a manifest.
      path: The manifest.

    Raises:
      DataError: The cut reads from something other than a file, states an implausible size, or has a name or a text
        that cannot be written to files of results.
    """
    context = f"cut {cut.id} in {path}"
    if not isinstance(cut, MonoCut):
        raise DataError(f"{context} is a {type(cut).__name__}: expected a MonoCut, with one recording and one channel")
    _check_strings(cut, path)
    _check_numbers(cut, context)
    if not 0 < cut.duration <= _MAX_DURATION:
        raise DataError(
            f"{context} has a duration of {cut.duration:g} s: expected more than 0 and at most {_MAX_DURATION:g}; fix "
            "the manifest"
        )
    if cut.has_recording:
        check_recording(cut.recording, context)
    if cut.has_features:
        _check_features(cut.features, context)


def _check_strings(cut: MonoCut, path: Path) -> None:
    if not isinstance(cut.id, str) or _INVALID_IN_NAMES.search(cut.id):
        raise DataError(
            f"{path} has a cut with the name {quote(str(cut.id))}: expected Unicode without line breaks and control "
            "characters; fix the manifest"
        )
    for text in (supervision.text for supervision in cut.supervisions):
        if isinstance(text, str) and _SURROGATES.search(text):
            raise DataError(
                f"cut {cut.id} in {path} has the text {quote(text)}, which is not Unicode; fix the manifest"
            )


def _check_numbers(cut: MonoCut, context: str) -> None:
    numbers = [cut.start, *(t for s in cut.supervisions for t in (s.start, s.duration))]
    if cut.has_recording:
        numbers += [cut.recording.duration, cut.recording.num_samples, cut.recording.sampling_rate]
    if cut.has_features:
        features = cut.features
        numbers += [features.start, features.duration, features.frame_shift, features.sampling_rate]
        numbers += [features.num_frames, features.num_features]
    wrong = [value for value in numbers if not isinstance(value, int | float) or not math.isfinite(value)]
    if wrong:
        raise DataError(f"{context} has the value {quote(str(wrong[0]))}: expected a finite number; fix the manifest")


def check_recording(recording: Recording, context: str) -> None:
    """Check the metadata of a recording; `context` names it in errors.

    Raises:
      DataError: The recording reads from something other than a file, has a transform that reads other recordings, or
        states an implausible size.
    """
    for source in recording.sources:
        if source.type not in _ALLOWED_SOURCES:
            raise DataError(
                f"{context} reads its audio from a {source.type} ({str(source.source)[:60]!r}): expected a file; "
                "do not trust this manifest, or convert its audio to files first"
            )
        # Lhotse passes such a path to a shell.
        if str(source.source).lower().endswith(".sph") and shlex.quote(str(source.source)) != str(source.source):
            raise DataError(
                f"{context} has audio in {str(source.source)[:60]!r}, a name with shell metacharacters: rename the file"
            )
    for transform in recording.transforms or ():
        name = transform["name"] if isinstance(transform, dict) else type(transform).__name__
        if name not in _ALLOWED_TRANSFORMS:
            raise DataError(
                f"{context} has the audio transform {name}: expected one of {', '.join(_ALLOWED_TRANSFORMS)}"
            )
    if recording.sampling_rate not in _SAMPLING_RATES:
        raise DataError(
            f"{context} has a sampling rate of {recording.sampling_rate} Hz: expected {_SAMPLING_RATES.start} to "
            f"{_SAMPLING_RATES.stop - 1}; fix the manifest"
        )
    _check_length(recording.duration, recording.num_samples / recording.sampling_rate, f"the samples of {context}")


def check_sampling_rate(recording: Recording, context: str) -> None:
    """Check that features can be computed from a recording; `context` names it in errors.

    Raises:
      DataError: It has another sampling rate than the features.
    """
    expected = FbankConfig().sample_rate
    if recording.sampling_rate != expected:
        raise DataError(
            f"{context} has a sampling rate of {recording.sampling_rate} Hz: expected {expected} Hz; write manifests "
            f"of resampled audio, with recording.resample({expected})"
        )


def check_files(cut: Cut, stored_features: bool) -> None:
    """Check that the files of a cut are regular files, since reading a device or pipe may never end.

    Args:
      cut: The cut to be read next; of a mixed cut, every track is checked.
      stored_features: Whether its features will be read, or its audio.

    Raises:
      DataError: A path names something other than a regular file.
      OSError: A file does not exist.
    """
    for track in [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]:
        for file in _files(track, stored_features):
            if not stat.S_ISREG(Path(file).stat().st_mode):
                raise DataError(f"cut {track.id} reads from {file}, which is not a regular file: do not trust it")


def _files(cut: MonoCut, stored_features: bool) -> Iterator[str]:
    if not stored_features:
        yield from (source.source for source in cut.recording.sources if source.type == "file")
    elif not cut.features.storage_type.startswith("memory"):
        yield cut.features.storage_path


def _check_features(features: Features, context: str) -> None:
    expected = FbankConfig()
    if features.storage_type not in _ALLOWED_STORAGES:
        raise DataError(
            f"{context} has features in storage of type {features.storage_type!r}: expected files "
            f"({', '.join(_ALLOWED_STORAGES)}); do not trust this manifest, or compute its features again"
        )
    if features.num_features != expected.num_bins:
        raise DataError(f"{context} has {features.num_features} features per frame: expected {expected.num_bins}")
    _check_length(features.duration, features.num_frames * expected.frame_seconds, f"the features of {context}")


def _check_length(duration: float, counted: float, subject: str) -> None:
    if not abs(counted - duration) <= _TOLERANCE:
        raise DataError(
            f"{subject} have a duration of {duration:g} s, but their number corresponds to {counted:g} s: expected the "
            "same length; fix the manifest"
        )
