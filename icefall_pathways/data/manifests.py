"""What is believed of a manifest: it may be a stranger's, and lhotse does what it says.

Audio and features may lie anywhere on this machine, as lhotse's own manifests have it. They are read from regular
files, nothing is run or fetched for them, and what manifests claim of sizes has to be possible.
"""

import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from lhotse import Features, MonoCut, Recording
from lhotse.cut import Cut

from icefall_pathways.data.features import FbankConfig

_MAX_DURATION = 24 * 3600.0  # seconds of a cut
_SAMPLING_RATES = range(1000, 384_001)
_TOLERANCE = 1.0  # seconds by which two claims of one length may differ
# Other kinds run commands, fetch addresses, or hold recordings of their own.
_ALLOWED_SOURCES = ("file", "memory")
_ALLOWED_TRANSFORMS = ("Speed", "Tempo", "Resample", "Volume", "LoudnessNormalization", "Narrowband")
_ALLOWED_STORAGES = (
    *("lilcom_chunky", "lilcom_files", "lilcom_hdf5", "chunked_lilcom_hdf5", "numpy_files", "numpy_hdf5"),
    *("memory_lilcom", "memory_raw"),
)


class DataError(ValueError):
    """Manifests or features that are missing or do not fit."""


def check_cut(cut: Cut, path: Path) -> None:
    """Check what a cut claims, before any of its audio or features is looked at.

    Args:
      cut: Of a manifest.
      path: The manifest.

    Raises:
      DataError: It takes them from elsewhere than files, or claims sizes that cannot be.
    """
    where = f"cut {cut.id} in {path}"
    if not isinstance(cut, MonoCut):
        raise DataError(f"{where} is a {type(cut).__name__}: expected MonoCuts, of one recording and channel each")
    if not 0 < cut.duration <= _MAX_DURATION:
        raise DataError(
            f"{where} claims to last {cut.duration:g} s: expected up to {_MAX_DURATION:g}; mend the manifest"
        )
    if cut.has_recording:
        check_recording(cut.recording, where)
    if cut.has_features:
        _check_features(cut.features, where)


def check_recording(recording: Recording, where: str) -> None:
    """Check what a recording claims; `where` names it.

    Raises:
      DataError: It is read from elsewhere than a file, is changed in ways that read others, or claims impossible sizes.
    """
    for source in recording.sources:
        if source.type not in _ALLOWED_SOURCES:
            raise DataError(
                f"{where} takes its audio from a {source.type} ({str(source.source)[:60]!r}): expected audio files; "
                "do not trust this manifest, or make its audio files first"
            )
        # Lhotse hands such a path to a shell.
        if str(source.source).lower().endswith(".sph") and shlex.quote(str(source.source)) != str(source.source):
            raise DataError(
                f"{where} has audio in {str(source.source)[:60]!r}, a name that a shell would take apart: rename it"
            )
    for transform in recording.transforms or ():
        name = transform["name"] if isinstance(transform, dict) else type(transform).__name__
        if name not in _ALLOWED_TRANSFORMS:
            raise DataError(f"{where} changes its audio by {name}: expected one of {', '.join(_ALLOWED_TRANSFORMS)}")
    if recording.sampling_rate not in _SAMPLING_RATES:
        raise DataError(
            f"{where} claims {recording.sampling_rate} samples a second: expected {_SAMPLING_RATES.start} to "
            f"{_SAMPLING_RATES.stop - 1}; mend the manifest"
        )
    _check_length(recording.duration, recording.num_samples / recording.sampling_rate, f"the samples of {where}")


def check_files(cut: Cut, stored_features: bool) -> None:
    """Check that what a cut is read from is a regular file; devices and pipes have no end.

    Args:
      cut: To be read next; one that noise was mixed into is looked at track by track.
      stored_features: Whether its features are read, or its audio.

    Raises:
      DataError: Something else has that name.
      OSError: Nothing has.
    """
    for track in [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]:
        for file in _files(track, stored_features):
            if not stat.S_ISREG(Path(file).stat().st_mode):
                raise DataError(f"cut {track.id} is to be read from {file}, which is no regular file: do not trust it")


def _files(cut: MonoCut, stored_features: bool) -> Iterator[str]:
    if not stored_features:
        yield from (source.source for source in cut.recording.sources if source.type == "file")
    elif not cut.features.storage_type.startswith("memory"):
        yield cut.features.storage_path


def _check_features(features: Features, where: str) -> None:
    expected = FbankConfig()
    if features.storage_type not in _ALLOWED_STORAGES:
        raise DataError(
            f"{where} has features in storage of type {features.storage_type!r}: expected files "
            f"({', '.join(_ALLOWED_STORAGES)}); do not trust this manifest, or compute its features again"
        )
    if features.num_features != expected.num_bins:
        raise DataError(
            f"{where} has features of {features.num_features} numbers a frame: expected {expected.num_bins}"
        )
    seconds = features.num_frames * expected.frame_shift / expected.sample_rate
    _check_length(features.duration, seconds, f"the features of {where}")


def _check_length(duration: float, counted: float, what: str) -> None:
    if not abs(counted - duration) <= _TOLERANCE:
        raise DataError(f"{what}: {duration:g} s by their duration, {counted:g} s by their number; mend the manifest")
