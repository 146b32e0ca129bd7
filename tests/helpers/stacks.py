"""The stacks whose packages are locked: reference (requirements.txt) and current (requirements-current.txt)."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from browser import NO_BROWSER
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

Stack = Literal["reference", "current"]

#: The files without suffix that list the packages of each stack.
REQUIREMENTS: dict[Stack, str] = {"reference": "requirements", "current": "requirements-current"}

#: The Python versions that tools/make_env.sh accepts for each stack; the first is the one that is tested.
PYTHON_VERSIONS: dict[Stack, tuple[str, ...]] = {"reference": ("3.10",), "current": ("3.11", "3.12", "3.13")}

_DIRECT, _LOCKED, _KALDIFEAT = "{}.in", "{}.txt", "tools/kaldifeat/requirements.txt"


@cache
def locked_versions(stack: Stack, python: str | None = None) -> dict[str, str]:
    """Return the version of each package of a stack, for a Python version, or None: the first one of the stack.

    torch of the current stack is not in its lock, because its build depends on the machine.
    """
    files = [_DIRECT.format(REQUIREMENTS[stack]), _LOCKED.format(REQUIREMENTS[stack])]
    if stack == "reference":
        files.append(_KALDIFEAT)
    python = python or PYTHON_VERSIONS[stack][0]
    environment = {"python_version": python, "python_full_version": f"{python}.9"}
    versions = {}
    for name in files:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if pinned := re.match(r"[\w.-]+==[^\\#]*?(?= --hash| *\\| *#|$)", line):
                requirement = Requirement(pinned[0])
                if requirement.marker is None or requirement.marker.evaluate(environment):
                    versions[requirement.name] = str(requirement.specifier).removeprefix("==")
    return versions


def running_stack() -> Stack | None:
    """Return the stack of this environment, judged by its torch, or None if it is another torch."""
    version = torch.__version__.split("+")[0]
    return next((stack for stack in REQUIREMENTS if locked_versions(stack)["torch"] == version), None)


def fail_skipped_test(report: pytest.TestReport, stack: Stack | None) -> None:
    """Change the outcome of a skipped test to failed on the reference stack, which has all packages of the tests.

    A browser is not a package: without root, `make test` may not be able to install it.
    """
    if report.skipped and stack == "reference":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if NO_BROWSER in str(reason) and os.geteuid() != 0:
            return
        report.outcome = "failed"
        report.longrepr = f"no test may be skipped on the reference stack: {reason}"
