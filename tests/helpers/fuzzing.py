"""Damaged files for readers: each has to return or to raise its documented error, see benchmarks/fuzz.md."""

import gzip
import io
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

Files = dict[str, bytes]
"""Contents of files by their path in a folder."""

_MEMORY_DISK = Path("/dev/shm")  # several times faster for tiny files
_MAX_MESSAGE = 2000  # characters
_TOKENS = re.compile(rb'"[^"]*"|[\w.+-]+')
_OTHER_TOKENS = (
    *(b"null", b"true", b"-1", b"0", b"1", b"0.5", b"-0.0", b"65536", b"4294967296", b"1" * 20, b"9" * 310, b"1e308"),
    *(b"NaN", b"-Infinity", b"inf", b"nan", b"-99", b'""', b'" "', b'"x"', b"[]", b"{}", b"[[]]", b'{"a":1}', b"x"),
    *(b'"\\ud800"', "é".encode(), "𝄞".encode(), b"\xe9", b"\xff\xfe", b"\0", b"\n", b"\r", b"\t", b" ", b",", b"|"),
)
_DAMAGES = ("truncate", "overwrite", "flip", "remove", "insert", "join", "move", "encode", *["token"] * 4)
_ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "latin1")


def compress(contents: Files) -> Files:
    """Compress the files whose names end in .gz."""
    return {name: gzip.compress(data, 1, mtime=0) if name.endswith(".gz") else data for name, data in contents.items()}


def files_in(folder: Path) -> Files:
    """Return the files of a folder and its subfolders."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@dataclass(frozen=True)
class Case:
    """Readers of the same files.

    Attributes:
      valid: Returns sets of valid contents.
      reads: Functions that read the files in a folder, each in one way.
      error: Documented type of their errors.
      names: Pattern in messages that do not name the file.
      seal: Returns the files of contents that may be damaged: compressed, or with checksums that match.
      weight: Share of the inputs, relative to that of other cases; readers that take long have less.
    """

    valid: Callable[[], Sequence[Files]]
    reads: tuple[Callable[[Path], object], ...]
    error: type[Exception] = ValueError
    names: str | None = None
    seal: Callable[[Files], Files] = compress
    weight: float = 1.0

    def check(self, files: Mapping[str, bytes]) -> None:
        """Read files in every way.

        Raises:
          Exception: A reader raises another error than the documented one, or one that does not name the files.
        """
        for read in self.reads:
            with tempfile.TemporaryDirectory(dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None) as name:
                try:
                    _read(read, Path(name), files)
                except self.error as error:
                    has_name = name in str(error) or (self.names and re.search(self.names, str(error)))
                    if not has_name or len(str(error)) > _MAX_MESSAGE:
                        raise AssertionError(f"the message names no file, or is too long: {error!r}") from error

    def check_valid(self) -> None:
        """Read all valid files, without errors."""
        for contents in self.valid():
            for read in self.reads:
                with tempfile.TemporaryDirectory() as name:
                    _read(read, Path(name), self.seal(contents))


def _read(read: Callable[[Path], object], folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        read(folder)


@st.composite
def damaged(draw: st.DrawFn, case: Case) -> Files:
    """Return files of a case of which some are damaged: before they are sealed, afterwards, or both."""
    valid = case.valid()
    contents = dict(draw(st.sampled_from(valid)))
    others = [data for files in valid for data in files.values()]
    when = draw(st.sampled_from(["before", "before", "after", "both"]))
    if when != "after":
        contents = _damage_one(draw, contents, others)
    files = case.seal(contents)
    return files if when == "before" or not files else _damage_one(draw, files, others)


def _damage_one(draw: st.DrawFn, files: Files, others: Sequence[bytes]) -> Files:
    name = draw(st.sampled_from(sorted(files)))
    match draw(st.sampled_from(["remove", "replace", *["damage"] * 12])):
        case "remove":
            return {path: data for path, data in files.items() if path != name}
        case "replace":
            return files | {name: draw(st.binary(max_size=300) | st.sampled_from(others))}
    data = files[name]
    for _ in range(draw(st.sampled_from([1, 1, 2, 6]))):
        data = _damage(draw, data, others)
    return files | {name: data}


def _damage(draw: st.DrawFn, data: bytes, others: Sequence[bytes]) -> bytes:
    """Truncate, overwrite, flip, remove, insert, join, move, re-encode, or replace a word or number."""
    # Headers, where most fields are, are damaged as often as the rest.
    end = min(len(data), draw(st.sampled_from([64, 1024, len(data)])))
    position = draw(st.integers(0, max(0, end - 1)))
    before, after = data[:position], data[position:]
    match draw(st.sampled_from(_DAMAGES)):
        case "truncate":
            return before
        case "overwrite":
            patch = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80"])) * draw(st.sampled_from([1, 2, 4, 8, 500]))
            return before + patch + after[len(patch) :]
        case "flip" if after:
            return before + bytes([after[0] ^ 1 << draw(st.integers(0, 7))]) + after[1:]
        case "remove":
            return before + after[draw(st.integers(1, 3000)) :]
        case "insert":
            return before + draw(st.binary(max_size=16)) + after
        case "join":
            return before + draw(st.sampled_from(others))
        case "move":
            return before + after[: draw(st.integers(1, 200))] * 2 + after
        case "encode":
            return data.decode("utf-8", "replace").encode(draw(st.sampled_from(_ENCODINGS)), "replace")
    token = _TOKENS.search(data, position) or _TOKENS.search(data)
    if token is None:
        return data
    same = _TOKENS.findall(data[:2000]) or [token.group()]
    return data[: token.start()] + draw(st.sampled_from(_OTHER_TOKENS) | st.sampled_from(same)) + data[token.end() :]


def examples(default: int) -> int:
    """Return the number of inputs of a test: the variable FUZZ_EXAMPLES, or the default."""
    return int(os.environ.get("FUZZ_EXAMPLES", default))
