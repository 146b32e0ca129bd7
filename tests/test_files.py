"""Atomic file writes, lock files and JSON files."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.files import (
    atomic_write,
    exclusive_lock,
    read_json,
    read_lines,
    read_text,
    write_errors,
    write_json,
)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_with_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "a.json"
    message = (
        r"cannot write .*a\.json \(No space left on device\): .* GB are free; free some, or use a folder on another"
    )
    with pytest.raises(OSError, match=message), atomic_write(path):
        Path("/dev/full").write_text("x")
    assert not list(tmp_path.iterdir())


WRITERS = {
    "bytes": "path.write_bytes(bytes(200_000))",
    "torch": "import torch; from icefall_pathways.torch_compat import save; save({'a': torch.zeros(50_000)}, path)",
    "safetensors": "import torch; from safetensors.torch import save_file; save_file({'a': torch.zeros(50_000)}, path)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_recognized_in_the_exceptions_of_libraries(tmp_path, writer):
    """A limit of the size of files stands for a full disk."""
    program = (
        "import resource, sys; from icefall_pathways.files import atomic_write\n"
        f"with atomic_write(sys.argv[1]) as path:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"    {WRITERS[writer]}"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "model.pt"], capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"OSError: cannot write {tmp_path / 'model.pt'} (File too large): ")
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), write_errors(tmp_path / "a"):
        (tmp_path / "missing").read_text()
    with pytest.raises(RuntimeError, match=r"^other$"), write_errors(tmp_path / "a"):
        raise RuntimeError("other")


def test_names_that_are_not_utf8_are_written_to_json(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"name": name, "path": Path(name)})
    assert read_json(tmp_path / "a.json") == {"name": name, "path": name}


def test_error_for_invalid_json_names_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(path)


_lines = st.lists(st.text(st.characters(blacklist_characters="\0\r\n\ufeff", blacklist_categories=["Cs"])))


@settings(deadline=None)
@given(_lines, st.booleans())
def test_lines_are_read_with_any_line_end_and_byte_order_marks(tmp_path_factory, lines, marked):
    """Files that were joined have a mark in front of several lines."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    for end in ("\n", "\r\n", "\r"):
        data = "".join("\ufeff" * marked + line + end for line in lines).encode()
        path.write_bytes(data)
        assert list(read_lines(path)) == lines
        path.with_suffix(".gz").write_bytes(gzip.compress(data))
        assert read_text(path.with_suffix(".gz")) == "\n".join(lines)


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_read_or_reported_with_file_and_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(data)
    try:
        read_text(path)
    except ValueError as error:
        match = re.match(rf"{path}, line (\d+) is not in UTF-8 .*iconv", str(error))
        line = data.split(b"\n")[int(match[1]) - 1]
        assert b"\0" in line or line.decode(errors="replace").encode() != line


def test_a_byte_order_mark_in_json_is_accepted(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.json.*line 1 is not in UTF-8 .*iconv -f utf-16"):
        read_json(tmp_path / "a.json")


def test_lock_excludes_other_processes_until_its_holder_is_killed(tmp_path):
    path = tmp_path / "exp" / ".lock"
    program = (
        "import sys, time, pathlib; from icefall_pathways.files import exclusive_lock\n"
        "with exclusive_lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with (
            pytest.raises(ValueError, match=rf"exp is in use by another run \(process {holder.pid} on "),
            exclusive_lock(path),
        ):
            pass
        holder.kill()
    with exclusive_lock(path):
        assert path.exists()
