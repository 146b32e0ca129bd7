"""Manifests as JSON lines in a gzip file of many members, which allow random access.

A gzip file may consist of several members, one after another; gzip, Python and Lhotse read them as one file. Each
member here holds at most `MEMBER_LINES` whole lines, so that a line is read by decompressing one small member: remember
its `Location`. The bytes depend on the content alone: the headers hold neither a time nor a file name.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

MEMBER_LINES = 100

_GZIP = 16 + zlib.MAX_WBITS  # zlib's number for the format of gzip
_LEVEL = 6
_BLOCK = 1 << 16  # bytes


class Location(NamedTuple):
    """Position of a line.

    Attributes:
      member: Position of its gzip member in the file, in bytes.
      start: Position of the line in the decompressed member, in bytes.
      size: Length of the line without its end, in bytes.
    """

    member: int
    start: int
    size: int


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, as Lhotse does."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with path.open("wb") as file:
        while member := "".join(islice(lines, MEMBER_LINES)):
            compressor = zlib.compressobj(_LEVEL, wbits=_GZIP)
            file.write(compressor.compress(member.encode()) + compressor.flush())


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a gzip file, without their ends.

    Raises:
      EOFError: The file is truncated.
      zlib.error: It is not a gzip file, or damaged.
    """
    return (line for _, line in locate_lines(path))


def locate_lines(path: Path) -> Iterator[tuple[Location, bytes]]:
    """Yield each line of a gzip file with its location; see `read_lines` for errors.

    The members of other writers may have any number of lines; they have to end at the end of a line.
    """
    with path.open("rb") as file:
        block = file.read(_BLOCK)
        while block:
            member = file.tell() - len(block)
            start, rest = 0, b""
            decompressor = zlib.decompressobj(_GZIP)
            while not decompressor.eof:
                data = rest + decompressor.decompress(block)
                block = decompressor.unused_data or file.read(_BLOCK)
                if not (block or decompressor.eof):
                    raise EOFError(f"{path} ends inside a gzip member: it is truncated")
                *lines, rest = data.split(b"\n")
                for line in lines:
                    yield Location(member, start, len(line)), line
                    start += len(line) + 1
            if rest:
                yield Location(member, start, len(rest)), rest


def read_line(file: BinaryIO, location: Location) -> bytes:
    """Return one line of an open gzip file; it decompresses the line's member up to the line.

    Raises:
      EOFError: The file is truncated, or the location is of another file.
      zlib.error: The file is damaged, or the location is of another file.
    """
    file.seek(location.member)
    decompressor = zlib.decompressobj(_GZIP)
    end = location.start + location.size
    data = b""
    while len(data) < end:
        if decompressor.eof or not (block := file.read(_BLOCK)):
            raise EOFError(f"{file.name} has no line of {location.size} bytes at {location}: the file has changed")
        data += decompressor.decompress(block, end - len(data))
    return data[location.start : end]
