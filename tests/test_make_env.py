"""Error messages of the environment set-up on machines that lack a requirement."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Commands that tools/make_env.sh needs before it has found Python.
BASIC_COMMANDS = [
    "bash",
    "env",
    "dirname",
    "cat",
    "sha256sum",
    "cut",
    "rm",
    "mkdir",
    "nproc",
    "mktemp",
    "tail",
    "find",
    "sort",
    "xargs",
    "grep",
    "sed",
]


@pytest.fixture
def bare_machine(tmp_path):
    """Copy the set-up files; return their folder and environment variables with only a few basic commands in PATH."""
    for name in ("tools", "requirements.txt", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for command in BASIC_COMMANDS:
        (tmp_path / "bin" / command).symlink_to(shutil.which(command))
    return tmp_path, {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}


def make_env(folder, environment):
    script = folder / "tools" / "make_env.sh"
    return subprocess.run([script], env=environment, capture_output=True, text=True, check=False)


def test_missing_python_310_is_reported_in_one_line(bare_machine):
    folder, environment = bare_machine
    done = make_env(folder, environment)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: no Python 3.10 with venv found in PATH, pyenv or uv; install one")
    assert not (folder / ".venv").exists()


def test_broken_python_is_skipped_and_rejected_if_selected(bare_machine):
    folder, environment = bare_machine
    shim = folder / "bin" / "python3.10"
    shim.write_text("#!/bin/bash\nexit 127\n")
    shim.chmod(0o755)
    assert "no Python 3.10 with venv found" in make_env(folder, environment).stderr
    done = make_env(folder, environment | {"PYTHON": str(shim)})
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        f"error: PYTHON={shim} is not a working Python 3.10 with venv; point PYTHON at one"
    ]


def test_missing_compiler_is_reported_in_one_line(tmp_path):
    script = ROOT / "tools" / "kaldifeat" / "build.sh"
    environment = os.environ | {"CXX": str(tmp_path / "no-compiler")}
    done = subprocess.run(
        [script, sys.executable, tmp_path / "wheels"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        "error: no C++ compiler found, and kaldifeat is built from source; install one (apt install g++) or set CXX"
    ]


@pytest.mark.parametrize(("version", "standard"), [("1.13.1+cu117", []), ("2.0.1", []), ("2.13.0", ["17"])])
def test_kaldifeat_is_built_with_the_cxx_standard_of_torch(tmp_path, version, standard):
    """Stub packages replace torch, pybind11 and pip; the stub of pip prints the CMake options and fails."""
    for name, text in {
        "torch.py": f"__version__ = {version!r}\ncompiled_with_cxx11_abi = bool\n",
        "pybind11/__init__.py": "",
        "pybind11/__main__.py": "print('cmake')",
        "pip/__init__.py": "",
        "pip/__main__.py": "import os\nprint(os.environ['KALDIFEAT_CMAKE_ARGS'])\nraise SystemExit(1)",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [ROOT / "tools" / "kaldifeat" / "build.sh", sys.executable, tmp_path / "wheels"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CXX": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error: the build of kaldifeat failed" in done.stderr
    prefix = "-DCMAKE_CXX_STANDARD="
    assert [word.removeprefix(prefix) for word in done.stderr.split() if word.startswith(prefix)] == standard
