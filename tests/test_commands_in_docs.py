"""Scripts accept the commands and options shown in the documentation."""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from icefall_pathways import cli, options

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs" / "mls" / "ASR"
PROGRAM = "icefall-pathways"
FOLDERS = {"": "*.md", "benchmarks": "*.md", "docs": "**/*.md", "egs": "**/*.md"}
PAGES = [page for folder, pattern in FOLDERS.items() for page in sorted((ROOT / folder).glob(pattern))]
HELP_TEXTS = sorted((ROOT / "icefall_pathways" / "commands").glob("*.py"))


class ParsedError(Exception):
    """Raised when a script has read its options."""


def lines_of(path):
    """Return the lines of a page or of a module's docstring, with continuation lines joined."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = text.split('"""')[1]
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def commands_of(path):
    """Yield (program, arguments) of each line that calls a script or icefall-pathways, with variables expanded."""
    variables = {}
    for line in lines_of(path):
        line = line.strip()
        if assigned := re.fullmatch(r'([A-Z])="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        if not re.match(r"(\./|torchrun |ffmpeg |icefall-pathways |OMP_NUM_THREADS=\d \./)", line):
            continue
        line = re.sub(r"   .*", "", line)  # the comment of a usage block
        words = shlex.split(line, comments=True)
        index = next((i for i, word in enumerate(words) if word.startswith(("./", PROGRAM))), None)
        if index is not None:
            yield words[index], [word for word in words[index + 1 :] if word not in ("|", "...")]


COMMANDS = [
    pytest.param(script, words, id=f"{path.relative_to(ROOT)}:{script} {' '.join(words)}"[:120])
    for path in PAGES + HELP_TEXTS
    for script, words in commands_of(path)
]


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_documented_command_is_accepted(script, words, monkeypatch):
    if script == PROGRAM:
        assert words[0] in cli.SCRIPTS
        cli.read_config(words[0], words[1:])
        return
    path = RECIPE / script
    assert os.access(path, os.X_OK), f"{path} is not executable"
    if path.suffix == ".sh":
        (command,) = [command for command, name in cli.SCRIPTS.items() if name == path.name]
        cli.read_config(command, words)
        return
    parse = options.parse

    def parse_and_stop(*arguments, **options):
        parse(*arguments, **options)
        raise ParsedError

    monkeypatch.setattr(options, "parse", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    with pytest.raises(ParsedError):
        runpy.run_path(str(path), run_name="__main__")


def test_documented_commands_are_collected():
    assert len(COMMANDS) > 40
    assert any(words[-2:] == ["--warm-updates", "0"] for _, words in (case.values for case in COMMANDS))
