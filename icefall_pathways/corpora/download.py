"""Download of Multilingual LibriSpeech (OpenSLR 94): resumable, verified, and unpacked safely."""

import hashlib
import tarfile
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from icefall_pathways.corpora.archives import unpack
from icefall_pathways.corpora.mls_layout import DOWNLOAD_MARK, folder_name
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.files import write_errors
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import Options

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without data
_MAX_CHECKSUM_BYTES = 1 << 20  # limit for the size of md5sum.txt


@dataclass(frozen=True)
class DownloadConfig(Options):
    """Options of the download."""

    corpus_dir: Path = Path("download/mls")
    """Folder for the archives and the mls_<language> folders."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    audio_format: Literal["opus", "flac"] = "opus"
    """Archives to download; opus is a tenth of the size."""

    base_url: str = "https://dl.fbaipublicfiles.com/mls"
    """URL of the folder of the archives and of md5sum.txt."""


def download_mls(config: DownloadConfig) -> None:
    """Download, verify, and unpack the archive of each language; completed languages are skipped.

    Raises:
      CorpusError: A file does not exist, the connection broke (the next call resumes the download), a checksum is
        wrong, or an archive contains a path outside its folder or unpacks to far more than its size.
    """
    names = [folder_name(language, config.audio_format) for language in parse_languages(config.languages)]
    missing = [name for name in names if not (config.corpus_dir / f".{name}.unpacked").exists()]
    if not missing:
        return
    config.corpus_dir.mkdir(parents=True, exist_ok=True)
    (config.corpus_dir / DOWNLOAD_MARK).touch()
    checksums = _read_checksums(f"{config.base_url.rstrip('/')}/md5sum.txt")
    for name in missing:
        archive = config.corpus_dir / f"{name}.tar.gz"
        if archive.name not in checksums:
            raise CorpusError(f"md5sum.txt of {config.base_url} does not list {archive.name}: check --base-url")
        _fetch(f"{config.base_url.rstrip('/')}/{archive.name}", archive)
        _verify(archive, checksums[archive.name])
        with tarfile.open(archive) as tar:
            unpack(tar, archive, config.corpus_dir)
        (config.corpus_dir / f".{name}.unpacked").touch()
        archive.unlink()


def _read_checksums(url: str) -> dict[str, str]:
    """Return MD5 sums by file name, from lines "SUM  NAME"."""
    with _open(Request(url)) as response:
        lines = response.read(_MAX_CHECKSUM_BYTES).decode("utf-8").splitlines()
    return {PurePosixPath(line.split()[1]).name: line.split()[0] for line in lines if len(line.split()) == 2}


def _fetch(url: str, archive: Path) -> None:
    """Download to `archive` via a .part file, from which a later call resumes."""
    if archive.exists():
        return
    part = archive.with_name(f"{archive.name}.part")
    offset = part.stat().st_size if part.exists() else 0
    size = _size(url)
    if offset > size:
        part.unlink()
        offset = 0
    if offset < size:
        request = Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
        with _open(request) as response:
            bar = tqdm(total=size, initial=offset, desc=archive.name, unit="B", unit_scale=True)
            # A server without support for ranges sends the whole file again (status 200, not 206).
            with bar, part.open("ab" if response.status == 206 else "wb") as file:
                _copy(response, file, bar, url, part)
    if part.stat().st_size != size:
        raise CorpusError(
            f"the download of {url} stopped at {part.stat().st_size} of {size} bytes: run the same command to resume it"
        )
    part.replace(archive)


def _copy(response: HTTPResponse, file: IO[bytes], bar: tqdm, url: str, part: Path) -> None:
    try:
        while block := response.read(_BLOCK):
            with write_errors(part):
                file.write(block)
            bar.update(len(block))
    except (OSError, HTTPException) as error:
        raise CorpusError(
            f"the download of {url} stopped ({error}): {part} is kept, run the same command to resume it"
        ) from error


def _size(url: str) -> int:
    with _open(Request(url, method="HEAD")) as response:
        length = response.headers.get("Content-Length")
    if length is None:
        raise CorpusError(f"the server does not report the size of {url}: try another --base-url")
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
            f"cannot reach {request.full_url} ({error}): check the network, or use an existing --corpus-dir"
        ) from error


def _verify(archive: Path, expected: str) -> None:
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
            f"{archive.name} has MD5 {digest.hexdigest()}, expected {expected}: it was damaged in transfer and "
            "has been removed; run the same command to download it again"
        )
