"""The table of supported versions lists what the tests run with, and no test is skipped on the reference stack."""

import platform
import re
from importlib import metadata

import pytest
from browser import NO_BROWSER
from stacks import PYTHON_VERSIONS, ROOT, fail_skipped_test, locked_versions, running_stack

PAGE = ROOT / "docs" / "installation.md"
STACKS = ("reference", "current")


def table() -> dict[str, dict[str, str]]:
    """Return the cells of the table of versions: package -> stack -> version."""
    rows = re.findall(r"^\| ([\w-]+) \| (.+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: dict(zip(STACKS, cells, strict=True)) for name, *cells in rows}


@pytest.mark.parametrize("stack", STACKS)
def test_documented_versions_are_the_locked_ones(stack):
    documented = {package: cells[stack] for package, cells in table().items()}
    assert documented.pop("Python") == ", ".join(PYTHON_VERSIONS[stack])
    assert {"torch", "k2", "kaldifeat", "kaldi-native-fbank", "lhotse", "numpy"} <= set(documented)
    locked = locked_versions(stack)
    assert documented == {package: locked.get(package, "none") for package in documented}


def test_other_python_versions_have_the_documented_versions():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    first, *others = (locked_versions("current", python) for python in PYTHON_VERSIONS["current"])
    for locked in others:
        documented = {package: locked.get(package, "none") for package in table() if package != "Python"}
        differing = {name for name, version in documented.items() if version != first.get(name, "none")}
        assert differing == {"numpy"} and f"with 3.12 and 3.13, numpy is {locked['numpy']}." in text


@pytest.mark.parametrize("stack", STACKS)
def test_readme_lists_the_same_versions(stack):
    cells = [table()[package][stack] for package in ("torch", "k2", "Python")]
    assert f"| {stack} | {' | '.join(cells)} |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_environment_script_accepts_the_documented_python_versions():
    script = (ROOT / "tools" / "make_env.sh").read_text(encoding="utf-8")
    for stack, versions in PYTHON_VERSIONS.items():
        assert re.search(rf'^{stack.upper()}_VERSIONS="?{" ".join(versions)}"?$', script, re.MULTILINE)


def test_installed_versions_are_the_documented_ones():
    stack = running_stack()
    if stack is None:
        pytest.skip("torch is not of a stack that make env sets up")
    documented = {package: cells[stack] for package, cells in table().items()}
    python = ".".join(platform.python_version_tuple()[:2])
    assert python in documented.pop("Python").split(", ")
    locked = locked_versions(stack, python)
    required = {package: locked[package] for package, version in documented.items() if version != "none"}
    assert {package: metadata.version(package).split("+")[0] for package in required} == required


@pytest.mark.parametrize("stack", [*STACKS, None])
@pytest.mark.parametrize("outcome", ["passed", "failed", "skipped"])
def test_skipped_test_fails_on_the_reference_stack(stack, outcome):
    report = pytest.TestReport("test_a", ("a.py", 1, "test_a"), {}, outcome, ("a.py", 1, "k2 is missing"), "call")
    fail_skipped_test(report, stack)
    if stack == "reference" and outcome == "skipped":
        assert report.failed and "k2 is missing" in report.longrepr
    else:
        assert report.outcome == outcome


@pytest.mark.parametrize(("user", "outcome"), [(0, "failed"), (1000, "skipped")])
def test_only_root_has_to_install_a_browser(user, outcome, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: user)
    reason = ("a.py", 1, f"Skipped: {NO_BROWSER}")
    report = pytest.TestReport("test_a", ("a.py", 1, "test_a"), {}, "skipped", reason, "call")
    fail_skipped_test(report, "reference")
    assert report.outcome == outcome
