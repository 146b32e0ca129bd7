"""Atomic file writes, lock files and JSON files."""

import subprocess
import sys
from pathlib import Path

import pytest

from icefall_pathways.files import atomic_write, exclusive_lock, read_json, write_errors, write_json


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
