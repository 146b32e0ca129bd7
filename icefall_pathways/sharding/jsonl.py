"""Manifests as JSON lines in a gzip file of many members, which allow random access.

A gzip file may consist of several members, one after another; gzip, Python and Lhotse read them as one file. Each
member here holds at most `MEMBER_LINES` whole lines, so that a line is read by decompressing one small member. The
bytes depend on the content alone: the headers hold neither a time nor a file name.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

MEMBER_LINES = 100
MAX_MEMBER_BYTES = 1 << 20  # uncompressed; larger members are too slow for random access

_GZIP = 16 + zlib.MAX_WBITS  # zlib's number for the format of gzip
_LEVEL = 6
_BLOCK = 1 << 16  # bytes


class LargeMembersError(ValueError):
    """A file does not consist of small gzip members of whole lines."""


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, as Lhotse does."""
    # Surrogates, which stand for bytes of names that are not UTF-8, become escape sequences of JSON.
    lines = (json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") for record in records)
    write_lines(path, lines)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines, given without their ends."""
    ended = (line + b"\n" for line in lines)
    with path.open("wb") as file:
        while member := b"".join(islice(ended, MEMBER_LINES)):
            compressor = zlib.compressobj(_LEVEL, wbits=_GZIP)
            file.write(compressor.compress(member) + compressor.flush())


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, without their ends. It may be of any writer; it is gzip if its name ends with .gz.

    Raises:
      EOFError: The file is truncated.
      OSError: It is not a gzip file.
      zlib.error: It is damaged.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from (line.rstrip(b"\r\n") for line in file)


def read_members(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the position of each gzip member in the file and its compressed bytes; see `lines_of`.

    Raises:
      LargeMembersError: A member is larger than `MAX_MEMBER_BYTES` or does not end at the end of a line.
      EOFError: The file is truncated.
      zlib.error: It is not a gzip file, or damaged.
    """
    with path.open("rb") as file:
        position, data = 0, file.read(_BLOCK)
        while data:
            member, data = _split_member(data, file)
            yield position, member
            position += len(member)
            data = data or file.read(_BLOCK)


def _split_member(data: bytes, file: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the first member of `data` and the bytes of `file` that follow, and the data after it."""
    member = bytearray()
    decompressor, size, last = zlib.decompressobj(_GZIP), 0, b"\n"
    while not decompressor.eof:
        if not data:
            raise EOFError(f"{file.name} ends inside a gzip member: it is truncated")
        text = decompressor.decompress(data, MAX_MEMBER_BYTES + 1 - size)
        size, last = size + len(text), text[-1:] or last
        if size > MAX_MEMBER_BYTES:
            raise LargeMembersError
        rest = decompressor.unused_data
        member += data[: len(data) - len(rest)]
        data = rest if decompressor.eof else file.read(_BLOCK)
    if last != b"\n":
        raise LargeMembersError
    return bytes(member), data


def lines_of(member: bytes) -> list[bytes]:
    """Return the lines of a compressed member, with their ends."""
    return zlib.decompress(member, _GZIP).splitlines(keepends=True)


class LineReader:
    """Read single lines of a file; may be shared by forked processes, and pickled.

    Args:
      path: A gzip file of many members.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, member: int, start: int, size: int) -> bytes:
        """Return one line; its member is decompressed up to the line.

        Args:
          member: Position of the member in the file, in bytes.
          start: Position of the line in the decompressed member.
          size: Bytes of the line.

        Raises:
          EOFError: The file is truncated, or has changed.
          zlib.error: The file is damaged, or has changed.
        """
        decompressor, text, end = zlib.decompressobj(_GZIP), b"", start + size
        while len(text) < end:
            # pread, because forked processes share the position of an open file.
            data = os.pread(self._file.fileno(), _BLOCK, member)
            if not data or decompressor.eof:
                raise EOFError(f"{self.path} has no line of {size} bytes at {member}, {start}: the file has changed")
            text += decompressor.decompress(data, end - len(text))
            member += len(data)
        return text[start:]

    @cached_property
    def _file(self) -> IO[bytes]:
        return self.path.open("rb")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)
