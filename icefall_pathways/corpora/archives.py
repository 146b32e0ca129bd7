"""Unpacking of archives, with limits on the paths and the total size of their files."""

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.files import write_errors

_BLOCK = 1 << 20
# Compression does not reduce audio, and reduces transcripts by a small factor.
_MAX_UNPACKED_BYTES = 100 << 20  # content of a small archive
_MAX_EXPANSION = 10  # relative to the size of a large archive


def unpack(
    tar: tarfile.TarFile, archive: Path, folder: Path, select: Callable[[PurePosixPath], bool] = lambda _: True
) -> None:
    """Unpack regular files and folders.

    Args:
      tar: The open archive.
      archive: Its file, for messages and for the limit of the total size.
      folder: Target folder; created if it does not exist.
      select: Returns True for files to unpack.

    Raises:
      CorpusError: The archive holds a path outside the folder, something other than regular files and folders, or
        unpacks to far more than its size.
    """
    remaining = max(_MAX_UNPACKED_BYTES, _MAX_EXPANSION * archive.stat().st_size)
    for member in tqdm(tar, desc=f"unpacking {archive.name}", unit="file"):
        path = PurePosixPath(member.name)
        if not member.isdir() and not select(path):
            continue
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise CorpusError(
                f"{archive} holds {member.name!r}, which is not a regular file inside its folder: do not trust it"
            )
        remaining -= member.size
        if remaining < 0:
            raise CorpusError(
                f"{archive} unpacks to more than {_MAX_EXPANSION} times its size, unlike audio: do not trust it"
            )
        target = folder / path
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None
        with write_errors(target), source, target.open("wb") as file:
            while block := source.read(_BLOCK):
                file.write(block)
