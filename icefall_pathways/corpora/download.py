"""Downloading Multilingual LibriSpeech (OpenSLR 94): resumed where it stopped, checked, unpacked without surprises."""

import hashlib
import tarfile
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import parse_languages

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_MAX_CHECKSUM_BYTES = 1 << 20  # bytes of md5sum.txt
# Audio does not get smaller in an archive, and transcripts by a few times.
_MAX_UNPACKED_BYTES = 100 << 20  # bytes of a small archive's content
_MAX_EXPANSION = 10  # times a large archive's size


@dataclass(frozen=True)
class DownloadConfig:
    """What to download, and where to."""

    corpus_dir: Path = Path("download/mls")
    """The folder for the archives and the mls_<language> folders."""

    languages: str = "en fr it nl"
    """Languages."""

    audio_format: Literal["opus", "flac"] = "opus"
    """The archives to take; opus is a tenth of the size."""

    base_url: str = "https://dl.fbaipublicfiles.com/mls"
    """The folder of the archives and of md5sum.txt; another mirror can be named."""


def download_mls(config: DownloadConfig) -> None:
    """Download, check and unpack the archive of each language; what is finished is skipped.

    Raises:
      CorpusError: A file is not there, the connection broke (what came is kept, the next call goes on), a checksum is
        wrong, or an archive holds a path outside its folder or far more than its size.
    """
    suffix = "_opus" if config.audio_format == "opus" else ""
    names = [f"mls_{language.name}{suffix}" for language in parse_languages(config.languages)]
    waiting = [name for name in names if not (config.corpus_dir / f".{name}.unpacked").exists()]
    if not waiting:
        return
    config.corpus_dir.mkdir(parents=True, exist_ok=True)
    checksums = _read_checksums(f"{config.base_url.rstrip('/')}/md5sum.txt")
    for name in waiting:
        archive = config.corpus_dir / f"{name}.tar.gz"
        if archive.name not in checksums:
            raise CorpusError(f"md5sum.txt of {config.base_url} does not list {archive.name}: check --base-url")
        _fetch(f"{config.base_url.rstrip('/')}/{archive.name}", archive)
        _check(archive, checksums[archive.name])
        _unpack(archive, config.corpus_dir)
        (config.corpus_dir / f".{name}.unpacked").touch()
        archive.unlink()


def _read_checksums(url: str) -> dict[str, str]:
    """File names and their MD5 sums, from lines "SUM  NAME"."""
    with _open(Request(url)) as response:
        lines = response.read(_MAX_CHECKSUM_BYTES).decode("utf-8").splitlines()
    return {PurePosixPath(line.split()[1]).name: line.split()[0] for line in lines if len(line.split()) == 2}


def _fetch(url: str, archive: Path) -> None:
    """Download to `archive`, by way of a .part file that a later call goes on with."""
    if archive.exists():
        return
    part = archive.with_name(f"{archive.name}.part")
    have = part.stat().st_size if part.exists() else 0
    size = _size(url)
    if have > size:
        part.unlink()
        have = 0
    if have < size:
        request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with _open(request) as response:
            bar = tqdm(total=size, initial=have, desc=archive.name, unit="B", unit_scale=True)
            # A server that does not know ranges sends the whole file again (200, not 206).
            with bar, part.open("ab" if response.status == 206 else "wb") as file:
                _copy(response, file, bar, url, part)
    if part.stat().st_size != size:
        raise CorpusError(f"{url} broke off at {part.stat().st_size} of {size} bytes: run the same command to go on")
    part.replace(archive)


def _copy(response: HTTPResponse, file: IO[bytes], bar: tqdm, url: str, part: Path) -> None:
    try:
        while block := response.read(_BLOCK):
            file.write(block)
            bar.update(len(block))
    except (OSError, HTTPException) as error:
        raise CorpusError(f"{url} broke off ({error}): {part} is kept, run the same command to go on") from error


def _size(url: str) -> int:
    with _open(Request(url, method="HEAD")) as response:
        length = response.headers.get("Content-Length")
    if length is None:
        raise CorpusError(f"{url} does not tell its size: try another --base-url")
    return int(length)


def _open(request: Request) -> HTTPResponse:
    try:
        return urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        raise CorpusError(
            f"{request.full_url}: {error.code} {error.reason}; check --base-url and --languages"
        ) from error
    except (URLError, OSError) as error:
        raise CorpusError(
            f"cannot reach {request.full_url} ({error}): check the network, or name the corpus with --corpus-dir"
        ) from error


def _check(archive: Path, expected: str) -> None:
    digest = hashlib.md5()
    with (
        archive.open("rb") as file,
        tqdm(total=archive.stat().st_size, desc=f"checking {archive.name}", unit="B", unit_scale=True) as bar,
    ):
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != expected:
        archive.unlink()
        raise CorpusError(
            f"{archive.name} has MD5 {digest.hexdigest()}, expected {expected}: it was damaged on the way and is "
            "removed; run the same command to download it again"
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack plain files and folders only; nothing leaves `folder` or fills the disk."""
    room = max(_MAX_UNPACKED_BYTES, _MAX_EXPANSION * archive.stat().st_size)
    with tarfile.open(archive) as tar:
        for member in tqdm(tar, desc=f"unpacking {archive.name}", unit="file"):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise CorpusError(
                    f"{archive} holds {member.name!r}, which is no plain file inside its folder: do not trust it"
                )
            room -= member.size
            if room < 0:
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
            with source, target.open("wb") as file:
                while block := source.read(_BLOCK):
                    file.write(block)
