"""Atomic file writes with errors that name the file, lock files, JSON files and file hashes."""

import errno
import fcntl
import gzip
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger("icefall_pathways")

_MAX_JSON_BYTES = 64 << 20  # headers and options take a few kilobytes
_COARSEST_TIME_STAMP = 2_000_000_000  # nanoseconds, of FAT
_BYTE_ORDER_MARK = "\ufeff"
TEMPORARY_PREFIX = ".writing-"  # name prefix of files that are being written
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_PROBE_BYTES = 1 << 16


@contextmanager
def write_errors(path: Path | str) -> Iterator[None]:
    """Name the file, and what to do, in errors about a full or read-only disk inside the context.

    The errors of the system do not name the file, and libraries report a full disk in exceptions of many types, some
    without the reason; then a small file is written to find it.

    Raises:
      OSError: The file cannot be written.
    """
    path = Path(path)
    try:
        yield
    except Exception as error:
        reason = _write_failure(error, path.parent)
        if reason is None:
            raise
        raise OSError(
            f"cannot write {path} ({reason}): {_free_space(path.parent)}; free some, or use a folder on another disk, "
            "and run the same command again"
        ) from error


def _write_failure(error: Exception, folder: Path) -> str | None:
    """Return the reason why a file could not be written; None for other errors."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _WRITE_ERRORS else None
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    except OSError as probe:
        return os.strerror(probe.errno or 0)
    return None


def _free_space(folder: Path) -> str:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return "the free space is unknown"
    return f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success, sync the file and rename it to `path`.

    The folder is created if necessary. After an exception the temporary file is removed and `path` is unchanged.
    The temporary name keeps the suffixes of `path`, because some writers choose their format by them.

    Raises:
      OSError: The file cannot be written; the message names it and says what to do.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix="".join(path.suffixes), dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            with write_errors(path):  # before the temporary file is removed, which frees its space
                yield temporary
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file inside the context; the system releases it when the process ends, even if it is killed.

    File systems without locks are used without one. The file remains: removing it would be a race.

    Args:
      path: The file; its folder is created if necessary.
      wait: Wait until another process releases the lock.

    Raises:
      ValueError: Another process holds the lock, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        try:
            # Unlike flock, not inherited by forked data loader workers, which may outlive this process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = path.read_text(encoding="utf-8").strip()
            if not wait:
                raise ValueError(
                    f"{path.parent} is in use by another run ({owner}): wait until it ends, or stop it, and run the "
                    "same command again"
                ) from error
            logger.info("waiting for %s, which has locked %s", owner, path)
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Paths are written as strings, of any bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    with atomic_write(path) as temporary:
        # Surrogates, which stand for bytes of names that are not UTF-8, become escape sequences of JSON.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
      ValueError: The file is too large or not valid JSON; the message names the file and the position.
    """
    path = Path(path)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}: "
            "it was not written by this project"
        )
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): restore it, or remove it and create it again") from error


def read_lines(path: Path | str) -> Iterator[str]:
    """Yield the lines of a text file in UTF-8, without their ends; a name that ends in .gz is decompressed.

    Byte order marks at the start of lines are skipped, and every convention of line ends is accepted.

    Raises:
      ValueError: The file is not in UTF-8, or damaged; the message names it and the line, and how to convert it.
    """
    opener = gzip.open if Path(path).suffix == ".gz" else open
    with opener(path, "rb") as file:
        for index, line in enumerate(_compressed_lines(Path(path), file)):
            try:
                text = line.decode()
                if "\0" in text:
                    raise ValueError("it contains the character NUL")
            except ValueError as error:
                encoding = "utf-16" if b"\0" in line else "latin1"
                raise ValueError(
                    f"{path}, line {index + 1} is not in UTF-8 ({error}): convert the file, such as with iconv -f "
                    f"{encoding} -t utf-8"
                ) from error
            parts = text.removesuffix("\n").removesuffix("\r").split("\r")
            yield from (part.lstrip(_BYTE_ORDER_MARK) for part in parts)  # files that were joined have several marks


def _compressed_lines(path: Path, file: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): copy or create it again") from error


def read_text(path: Path | str) -> str:
    """Return the content of a text file in UTF-8; see `read_lines`."""
    return "\n".join(read_lines(path))


def sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remembered_sha256(path: Path, memory: Path) -> str:
    """Return the SHA-256 of a file; compute it only if the file has changed since the last call.

    Args:
      path: The file.
      memory: JSON file that keeps the result. Nothing is kept if it cannot be written.
    """
    status = path.stat()
    # The time of the last change of the inode cannot be set, unlike that of the content.
    version = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = read_json(memory)
        if stored["version"] == version:
            return str(stored["sha256"])
    digest = sha256(path)
    # Time stamps are coarse: a change soon after the last one may not be visible in them.
    if time.time_ns() - status.st_ctime_ns > _COARSEST_TIME_STAMP:
        with suppress(OSError):
            write_json(memory, {"version": version, "sha256": digest})
    return digest


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
