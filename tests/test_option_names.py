"""Options keep their names, defaults and choices.

`option_names.json` lists them per script. After adding an option, update the list with

  .venv/bin/python tests/test_option_names.py

which refuses to drop an option, to change a default or to remove a choice. To rename an option, keep its old spelling
in `icefall_pathways.cli.RENAMED_OPTIONS`.
"""

import dataclasses
import json
import runpy
import sys
import typing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from icefall_pathways import cli, options

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs" / "mls" / "ASR"
LIST = Path(__file__).with_name("option_names.json")
SCRIPTS = [str(path.relative_to(RECIPE)) for pattern in ("*.sh", "*/*.py") for path in sorted(RECIPE.glob(pattern))]

Entry = dict[str, Any]  # default, and choices where only some words are accepted
Table = dict[str, Entry]


class ParsedError(Exception):
    """Raised with the config class of a script when the script reads its options."""


def config_class_of(script: str) -> type:
    """Return the dataclass that a Python script reads its options into."""

    def stop(config_class, *_arguments, **_options):
        raise ParsedError(config_class)

    with mock.patch.object(options, "parse", stop), mock.patch.object(sys, "argv", [script]):
        try:
            runpy.run_path(str(RECIPE / script), run_name="__main__")
        except ParsedError as parsed:
            return parsed.args[0]
    raise AssertionError(f"{script} does not read its options with options.parse")


def options_of_dataclass(config_class: type) -> Table:
    """Return default and choices of every option, including the fields of nested dataclasses."""
    hints = typing.get_type_hints(config_class)
    annotated = typing.get_type_hints(config_class, include_extras=True)
    table: Table = {}
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            table |= options_of_dataclass(hint)
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        entry: Entry = {"default": as_typed(default)}
        if typing.get_origin(hint) is typing.Literal:
            entry["choices"] = [as_typed(choice) for choice in typing.get_args(hint)]
        annotations = getattr(annotated[field.name], "__metadata__", ())
        names = [annotation.name for annotation in annotations if getattr(annotation, "name", None)]
        table[f"--{names[0] if names else field.name.replace('_', '-')}"] = entry
    return table


def as_typed(value: object) -> str | None:
    """Format `value` as users type it, so that a stricter type with the same values is not a change."""
    match value:
        case None:
            return None
        case bool():
            return str(int(value))
        case float():
            return f"{value:.12g}"
        case tuple() | list():
            return " ".join(str(as_typed(item)) for item in value)
    return str(value)


def current_options(script: str) -> Table:
    """Return the current options of a script."""
    name = Path(script).stem.replace("_", "-")
    command = cli.RENAMED_COMMANDS.get(name, name)
    shell = script.endswith(".sh")
    table = options_of_dataclass(cli.load_command(command).Config if shell else config_class_of(script))
    return table | {old: table[new] for old, new in cli.RENAMED_OPTIONS.get(command, {}).items()}


def frozen_options() -> dict[str, Table]:
    """Read the list."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def differences(frozen: Table, current: Table) -> list[str]:
    """List what would break a command line or a script that relies on `frozen`."""
    missing = [f"{name} is missing" for name in frozen if name not in current]
    changed = [
        f"{name} was {entry}, is {current[name]}"
        for name, entry in frozen.items()
        if name in current and not is_compatible(entry, current[name])
    ]
    return missing + changed


def is_compatible(frozen: Entry, current: Entry) -> bool:
    """Return whether an option has the same default and still accepts the same values."""
    if frozen["default"] != current["default"] or ("choices" in current and "choices" not in frozen):
        return False
    return set(frozen.get("choices", [])) <= set(current.get("choices", frozen.get("choices", [])))


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_keep_their_names_defaults_and_choices(script):
    frozen = frozen_options().get(script)
    assert frozen is not None, f"{script} is not in {LIST.name}: {__doc__}"
    current = current_options(script)
    assert not differences(frozen, current)
    assert current.keys() == frozen.keys(), f"new options are not in {LIST.name}: {__doc__}"


@pytest.mark.parametrize("command", cli.SCRIPTS)
def test_command_line_accepts_every_listed_option(command):
    """Passing the defaults gives the default configuration, and nothing is appended to -args options."""
    listed = frozen_options()[cli.SCRIPTS[command]]
    defaults = {name: entry["default"] for name, entry in listed.items() if entry["default"] is not None}
    defaults |= {name: "" for name in defaults if name.endswith("-args")}
    required = ["a.wav"] if defaults.pop("--audio", None) is not None else []
    if command == "run-study":  # the listed defaults are those of this corpus
        required = ["--corpus", "mls"]
    words = [word for name, default in defaults.items() for word in (name, default)]
    assert cli.read_config(command, [*words, *required]) == cli.read_config(command, required)


def test_every_listed_script_exists():
    assert set(frozen_options()) == set(SCRIPTS)


def test_dropped_options_changed_defaults_and_removed_choices_are_reported():
    frozen: Table = {
        "--epoch": {"default": "0"},
        "--avg": {"default": "1"},
        "--split": {"default": "test", "choices": ["test", "dev"]},
    }
    current: Table = {
        "--avg": {"default": "2"},
        "--iter": {"default": "0"},
        "--split": {"default": "test", "choices": ["test", "dev", "train"]},
    }
    assert differences(frozen, current) == [
        "--epoch is missing",
        "--avg was {'default': '1'}, is {'default': '2'}",
    ]
    narrowed = current | {"--split": {"default": "test", "choices": ["test"]}}
    assert len(differences(frozen, narrowed)) == 3


def update_list() -> None:
    """Add new scripts and options to the list."""
    frozen = frozen_options() if LIST.exists() else {}
    current = {script: current_options(script) for script in SCRIPTS}
    broken = [f"{script}: {line}" for script in frozen for line in differences(frozen[script], current.get(script, {}))]
    if broken:
        sys.exit("error: these changes would break existing command lines:\n  " + "\n  ".join(broken))
    blocks = []
    for script, table in current.items():
        lines = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items()]
        blocks.append(f"  {json.dumps(script)}: {{\n" + ",\n".join(lines) + "\n  }")
    LIST.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    update_list()
