"""The environment set-up selects a stack for the machine and reports missing requirements."""

import hashlib
import json
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
    folder = tmp_path / "a checkout"  # whose path has a space
    folder.mkdir()
    files = [f"requirements{stack}.{suffix}" for stack in ("", "-current") for suffix in ("in", "txt")]
    for name in ("tools", "pyproject.toml", *files):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "bin").mkdir()
    for command in BASIC_COMMANDS:
        (folder / "bin" / command).symlink_to(shutil.which(command))
    return folder, {"PATH": str(folder / "bin"), "HOME": str(folder)}


def make_env(folder, environment, *options):
    script = folder / "tools" / "make_env.sh"
    return subprocess.run([script, *options], env=environment, capture_output=True, text=True, check=False)


def add_command(folder, name, script):
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def selected_folder(folder, environment, **variables):
    done = make_env(folder, environment | variables, "--folder")
    assert done.returncode == 0 and done.stderr == ""
    return Path(done.stdout.strip()).relative_to(folder).as_posix()


@pytest.mark.parametrize(("stack", "versions"), [("reference", "3.10"), ("current", "3.11, 3.12, 3.13")])
def test_missing_python_is_reported_in_one_line(bare_machine, stack, versions):
    folder, environment = bare_machine
    done = make_env(folder, environment | {"STACK": stack})
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: no Python {versions} with venv found in PATH, pyenv or uv; install one")
    assert not list(folder.glob(".venv*"))


def test_broken_python_is_skipped_and_rejected_if_selected(bare_machine):
    folder, environment = bare_machine
    environment["STACK"] = "reference"
    shim = add_command(folder, "python3.10", "exit 127")
    assert "no Python 3.10 with venv found" in make_env(folder, environment).stderr
    done = make_env(folder, environment | {"PYTHON": str(shim)})
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        f"error: PYTHON={shim} is not a working Python 3.10 with venv; point PYTHON at one"
    ]


def test_python_selects_the_stack(bare_machine):
    folder, environment = bare_machine
    done = make_env(folder, environment)
    assert done.stdout == "Using the current stack in .venv-current: no Python 3.10 with venv is available\n"
    assert "error: no Python 3.11, 3.12, 3.13 with venv" in done.stderr
    newer = add_command(folder, "python3.12", "echo 3.12")
    assert selected_folder(folder, environment) == ".venv-current"
    add_command(folder, "python3.10", "echo 3.10")
    assert selected_folder(folder, environment) == ".venv"
    assert selected_folder(folder, environment, PYTHON=str(newer)) == ".venv-current"
    assert selected_folder(folder, environment, STACK="current") == ".venv-current"
    assert selected_folder(folder, environment, STACK="reference", PYTHON=str(newer)) == ".venv"


def test_all_stacks_of_the_machine_are_tested(bare_machine):
    """If there is only one, a line states the reason; STACK and PYTHON select one."""
    folder, environment = bare_machine

    def stacks(**variables):
        done = make_env(folder, environment | variables, "--stacks")
        assert done.returncode == 0
        return done.stdout, done.stderr

    newer = add_command(folder, "python3.12", "echo 3.12")
    reason = "the reference stack needs Python 3.10, which is not available with venv"
    assert stacks() == ("current\n", f"Only the current stack is used: {reason}\n")
    add_command(folder, "python3.10", "echo 3.10")
    assert stacks() == ("reference current\n", "")
    assert stacks(STACK="reference") == ("reference\n", "")
    assert stacks(PYTHON=str(newer)) == ("current\n", "")
    newer.unlink()
    reason = "the current stack needs Python 3.11, 3.12, 3.13, which is not available with venv"
    assert stacks() == ("reference\n", f"Only the reference stack is used: {reason}\n")
    add_command(folder, "nvidia-smi", "echo '9.0, NVIDIA H100 PCIe'")
    assert stacks()[0] == "current\n"


@pytest.mark.parametrize(
    ("nvidia_smi", "selected"),
    [
        ("echo '8.9, NVIDIA L4'", ".venv"),
        ("echo '8.0, NVIDIA A100-SXM4-40GB'; echo '9.0, NVIDIA H100 PCIe'", ".venv-current"),
        ("echo '12.0, NVIDIA GeForce RTX 5090'", ".venv-current"),
        ("echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2", ".venv"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", ".venv"),
    ],
)
def test_gpu_that_torch_1_13_does_not_support_selects_the_current_stack(bare_machine, nvidia_smi, selected):
    folder, environment = bare_machine
    add_command(folder, "python3.10", "echo 3.10")
    add_command(folder, "nvidia-smi", nvidia_smi)
    assert selected_folder(folder, environment) == selected
    assert selected_folder(folder, environment, STACK="reference") == ".venv"
    if selected == ".venv-current":
        name = nvidia_smi.split(", ")[-1].rstrip("'")
        line = f"Using the current stack in .venv-current: torch 1.13.1 of the reference stack does not support {name}"
        assert make_env(folder, environment).stdout == f"{line}\n"
        warning = f"warning: torch 1.13.1 of the reference stack does not support {name}: STACK=current can use it\n"
        assert warning in make_env(folder, environment | {"STACK": "reference"}).stderr


@pytest.fixture
def installed_checkout(bare_machine):
    """Return a checkout with an environment that is up to date; its stub of pip writes every call to the file pip."""
    folder, environment = bare_machine
    stack, suffix = ("reference", "") if sys.version_info[:2] == (3, 10) else ("current", "-current")
    venv = folder / f".venv{suffix}"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for path, text in {
        "icefall_pathways-1.dist-info/METADATA": "Name: icefall_pathways\nVersion: 1\n",
        "icefall_pathways-1.dist-info/direct_url.json": json.dumps({"url": folder.as_uri()}),
        "pip/__init__.py": "",
        "pip/__main__.py": "import os, sys\nprint(os.getcwd(), *sys.argv[1:], file=open(sys.prefix + '/pip', 'a'))",
    }.items():
        (packages / path).parent.mkdir(exist_ok=True)
        (packages / path).write_text(text)
    (venv / "bin" / "mypy").write_text(f"#!{venv}/bin/python\n")
    names = (f"requirements{suffix}.txt", f"requirements{suffix}.in", "pyproject.toml")
    files = (*names, "tools/kaldifeat/requirements.txt", "tools/make_env.sh")
    fingerprint = hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()[:16]
    (venv / ".installed").write_text(fingerprint)
    return folder, venv.name, environment | {"STACK": stack}


def test_package_is_installed_again_after_the_checkout_was_moved(installed_checkout):
    folder, venv, environment = installed_checkout
    done = make_env(folder, environment)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 1, "")
    assert not (folder / venv / "pip").exists()
    moved = folder.rename(folder.with_name("moved"))
    environment |= {"PATH": str(moved / "bin")}
    done = make_env(moved, environment)
    assert done.returncode == 0 and f"of this folder, in place of {folder}\n" in done.stdout
    (call,) = (moved / venv / "pip").read_text().splitlines()
    assert call.startswith(f"{moved} ") and call.endswith(" --no-deps --no-build-isolation --editable .")
    assert (moved / venv / "bin" / "mypy").read_text() == f"#!{moved / venv}/bin/python\n"
    assert str(folder) not in (moved / venv / "bin" / "activate").read_text()


def test_environment_of_another_checkout_is_not_changed(installed_checkout):
    folder, venv, environment = installed_checkout
    other = folder.with_name("other")
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".venv*"))
    (other / venv).symlink_to(folder / venv)
    done = make_env(other, environment)
    assert done.returncode == 0 and not (folder / venv / "pip").exists()
    assert done.stderr.startswith(
        f"warning: {venv} is a link to an environment that imports icefall_pathways from {folder}"
    )


def test_unknown_stack_is_reported_in_one_line(bare_machine):
    folder, environment = bare_machine
    done = make_env(folder, environment | {"STACK": "newest"})
    assert done.returncode != 0
    assert done.stderr == "error: STACK=newest is not a stack: expected reference or current\n"


@pytest.mark.parametrize("argument", ["STACK=reference current", "STACK=other", "STACKS= "])
def test_make_test_without_a_stack_fails(bare_machine, argument):
    folder, environment = bare_machine
    shutil.copy(ROOT / "Makefile", folder)
    command = [shutil.which("make"), "test", argument]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors[-1] == 'error: no stack to test: STACKS="reference current" or one of them selects it'
    unknown = f"error: {argument} is not a stack: expected reference or current"
    assert set(errors[:-1]) == ({unknown} if argument.startswith("STACK=") else set())


def test_lock_of_the_current_stack_omits_torch_and_its_cuda_libraries():
    """They depend on the machine. The version of torch is that of requirements-current.in."""
    lines = (ROOT / "requirements-current.txt").read_text().splitlines()
    packages = {line.split("==")[0] for line in lines if "==" in line}
    assert {"numpy", "lhotse", "kaldi-native-fbank"} <= packages
    assert not [name for name in packages if name.startswith(("torch", "triton", "nvidia", "cuda", "k2", "kaldifeat"))]
    assert "\ntorch==2" in (ROOT / "requirements-current.in").read_text()


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
    scripts = tmp_path / "a checkout" / "kaldifeat"  # paths with spaces
    shutil.copytree(ROOT / "tools" / "kaldifeat", scripts)
    (scripts.parent / ".venv").symlink_to(Path(sys.executable).parents[1])
    python = scripts.parent / ".venv" / "bin" / Path(sys.executable).name
    done = subprocess.run(
        [scripts / "build.sh", python, tmp_path / "wheels"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CXX": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error: the build of kaldifeat failed" in done.stderr
    assert all(word.startswith("-D") for word in done.stderr.splitlines()[0].split())
    prefix = "-DCMAKE_CXX_STANDARD="
    assert [word.removeprefix(prefix) for word in done.stderr.split() if word.startswith(prefix)] == standard
