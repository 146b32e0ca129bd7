"""Locate the audio and features of a data folder that has been moved, or that is used from another working directory.

Paths in manifests are relative to the working directory of the preparation, as in Lhotse, so that Lhotse reads them
there. The description of a folder records this directory, relative to the folder and absolute.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lhotse import Recording
from lhotse.cut import Cut

from icefall_pathways.corpora.description import CorpusDescription


class PathResolver:
    """Replaces paths of manifests by paths of existing files.

    Features are in a folder next to the manifest of their cuts. Audio is searched for at its previous path relative to
    the data folder, then at its original path, then relative to the working directory.

    Args:
      folder: Folder of the manifests.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        description = CorpusDescription.load(folder)
        self._origins = description.origins if description else ()
        self._folders: dict[Path, Path | None] = {}

    def resolve(self, cut: Cut) -> Cut:
        """Return the cut, changed in place, with the paths of its files."""
        if cut.has_features and not cut.features.storage_type.startswith("memory"):
            cut.features.storage_path = self._locate(cut.features.storage_path, self._folders_of_features)
        if cut.has_recording:
            self.resolve_recording(cut.recording)
        return cut

    def resolve_recording(self, recording: Recording) -> Recording:
        """Return the recording, changed in place, with the paths of its audio."""
        for source in recording.sources:
            if source.type == "file":
                source.source = self._locate(source.source, self._folders_of_audio)
        return recording

    def _locate(self, path: str, candidates: Callable[[Path], Iterator[Path]]) -> str:
        """Return the path in the first candidate for its folder that exists, or the path itself."""
        folder, name = Path(path).parent, Path(path).name
        if folder not in self._folders:
            self._folders[folder] = next(filter(Path.is_dir, candidates(folder)), None)
        existing = self._folders[folder]
        return path if existing is None else str(existing / name)

    def _folders_of_features(self, folder: Path) -> Iterator[Path]:
        if folder.name:
            yield self._folder / folder.name
        yield from self._folders_of_audio(folder)

    def _folders_of_audio(self, folder: Path) -> Iterator[Path]:
        for origin in self._origins:
            if folder.is_relative_to(origin.absolute) or not folder.is_absolute():
                inner = folder.relative_to(origin.absolute) if folder.is_absolute() else folder
                yield Path(os.path.normpath(self._folder / origin.relative / inner))
                yield Path(origin.absolute) / inner
