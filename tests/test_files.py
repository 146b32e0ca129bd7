"""Atomic file writes, lock files and JSON files."""

import subprocess
import sys

import pytest

from icefall_pathways.files import atomic_write, exclusive_lock, read_json, write_json


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_error_for_invalid_json_names_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(path)


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
