"""The package can be built and installed, and prints help with only its core dependencies."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import icefall_pathways

ROOT = Path(__file__).resolve().parents[1]

# Import names of packages that are not core dependencies: k2, kaldifeat, Triton (which comes with torch for CUDA) and
# the packages of the extras.
NOT_CORE = (
    *("k2", "_k2", "kaldifeat", "_kaldifeat", "triton"),
    *("matplotlib", "tensorboard", "babel", "espeakng_loader", "num2words", "torchaudio"),
    *("onnx", "websockets", "sounddevice"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, without the network."""
    folder = tmp_path_factory.mktemp("package")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "icefall_pathways", folder / "source" / "icefall_pathways", ignore=ignore)
    shutil.copytree(ROOT / "tests", folder / "source" / "tests", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


def pip(*words):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_wheel_contains_package_and_license_but_no_tests(wheel):
    version = icefall_pathways.__version__
    assert wheel.name == f"icefall_pathways-{version}-py3-none-any.whl"
    info = f"icefall_pathways-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        license_text = archive.read(f"{info}/licenses/LICENSE").decode()
    sources = {f"icefall_pathways/{path.relative_to(ROOT / 'icefall_pathways')}" for path in modules()}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {"icefall_pathways/py.typed", "icefall_pathways/languages/cldr.json"} <= set(names)
    assert f"{info}/licenses/icefall_pathways/languages/LICENSE-unicode.txt" in names
    assert {name.split("/")[0] for name in names} == {"icefall_pathways", info}
    assert "icefall-pathways = icefall_pathways.cli:main" in scripts
    assert "License-Expression: Apache-2.0" in metadata and "Version 2.0, January 2004" in license_text
    assert {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")} == {
        *("train", "export", "serve", "dask", "cloud", "mic", "dev")
    }


def modules():
    return (ROOT / "icefall_pathways").rglob("*.py")


def test_installed_command_prints_help(wheel, tmp_path):
    """Install into a new environment, with the dependencies (and not the checkout) of the test environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", python, "install", wheel)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*command):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert run(python, "-c", "import icefall_pathways; print(icefall_pathways.__file__)").startswith(str(packages))
    script = python.with_name("icefall-pathways")
    assert run(script, "--version") == f"{icefall_pathways.__version__}\n"
    text = run(script, "transcribe", "--help")
    assert "icefall-pathways transcribe --exp-dir exp/pathways --lang fr speech.mp3" in text and "--lang" in text


PRINT_HELP_WITHOUT_EXTRAS = """
import contextlib, importlib.machinery, io, sys
hidden = set(sys.argv.pop().split())
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)
sys.meta_path = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
import icefall_pathways
assert "torch" not in sys.modules
from icefall_pathways import cli
for command in cli.SCRIPTS:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main([command, "--help"])
        except SystemExit as stop:
            assert stop.code == 0, command
    assert f"usage: icefall-pathways {command}" in out.getvalue(), command
    print(command)
"""


def test_every_command_prints_help_with_core_dependencies_only():
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HELP_WITHOUT_EXTRAS, " ".join(NOT_CORE)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, f"after {done.stdout.split()[-1:]}: {done.stderr[-3000:]}"
    assert "transcribe" in done.stdout.split()


def test_third_party_imports_are_declared_dependencies():
    declared = declared_packages()
    imported = {
        name.split(".")[0]
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported_modules(node)
    }
    assert imported - set(sys.stdlib_module_names) - {"icefall_pathways"} <= declared | {"k2", "kaldifeat", "triton"}


def imported_modules(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def declared_packages() -> set[str]:
    """Return the import names of the dependencies and extras in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    requirements = [word for line in section.splitlines() for word in line.split("#")[0].split('"')[1::2]]
    return {requirement.split(">")[0].split("=")[0].replace("-", "_") for requirement in requirements}
