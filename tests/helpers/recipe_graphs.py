"""Options and commands of the recipe's jobs."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from icefall_pathways import cli
from icefall_pathways.recipe.jobs import Job


def read(command: str, line: str = "") -> Any:
    """Return the options that a command reads from a line."""
    return cli.read_config(command, shlex.split(line))


def commands(jobs: Iterable[Job]) -> dict[str, str]:
    """Return script and options of every step of every job."""
    return {job.name: "\n".join(shlex.join(step.command[1:]) for step in job.steps) for job in jobs}


def normalized(text: str) -> str:
    """Return a command line with the quotes of `shlex.join`."""
    return shlex.join(shlex.split(text))


def options_of(job: Job, *names: str) -> list[tuple[str, ...]]:
    """Return the script and the values of some options of every step; the last value of a repeated option counts."""
    rows = []
    for step in job.steps:
        values = dict(zip(step.command, step.command[1:], strict=False))
        rows.append((Path(step.command[1]).stem, *(values.get(f"--{name}", "") for name in names)))
    return rows
