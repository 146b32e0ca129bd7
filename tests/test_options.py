"""Command-line options from dataclasses."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from icefall_pathways import options
from icefall_pathways.files import write_json


@dataclass(frozen=True)
class Inner:
    max_duration: float = 200.0
    """Seconds of audio per batch."""

    use_fp16: bool = False
    """Half precision for all layers that allow it
    (half of the memory)."""


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    exp_dir: Path = Path("exp")
    """Output folder."""

    masks: Path | None = None
    """Masks file."""


def test_nested_fields_are_flat_options():
    config = options.parse(Outer, "", ["--max-duration", "15", "--exp-dir", "a/b", "--masks", "m.safetensors"])
    assert config == Outer(Inner(15.0), Path("a/b"), Path("m.safetensors"))


@pytest.mark.parametrize(("argument", "value"), [("1", True), ("true", True), ("0", False), ("False", False)])
def test_booleans_accept_the_values_of_icefall(argument, value):
    assert options.parse(Outer, "", ["--use-fp16", argument]).inner.use_fp16 is value


def test_invalid_boolean_is_rejected(capsys):
    with pytest.raises(SystemExit):
        options.parse(Outer, "", ["--use-fp16", "maybe"])
    assert "expected one of 1, 0, true, false; found 'maybe'" in "".join(capsys.readouterr())


def test_help_shows_text_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        options.parse(Outer, "Trains.", ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Trains." in text and "Seconds of audio per batch. (default: 200.0)" in text


def test_help_is_wrapped_at_the_terminal_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        options.parse(Outer, "", ["--help"])
    assert "for all layers that allow it (half of the memory). (default: 0)" in capsys.readouterr().out


def test_dict_round_trip():
    config = Outer(Inner(15.0, True), Path("a"), Path("m"))
    assert options.from_dict(Outer, options.to_dict(config)) == config
    assert options.to_dict(Outer())["masks"] is None


def test_error_for_unknown_option_names_it():
    with pytest.raises(ValueError, match="Inner has no option speed"):
        options.from_dict(Outer, {"inner": {"speed": 1}})


def test_user_actionable_error_is_reported_in_one_line(capsys):
    def main():
        raise ValueError("no such file: run prepare.sh first")

    with pytest.raises(SystemExit) as stop:
        options.run_script(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: no such file: run prepare.sh first\n"


def test_paths_below_the_working_directory_are_relative_in_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert options.quoted_command_line() is None
    words = ("train", f"--a={tmp_path}/x", f"{tmp_path}/y {tmp_path}/z", f"/mnt{tmp_path}/w", f"{tmp_path}-old/v")
    token = options.command_line.set(words)
    try:
        assert options.quoted_command_line() == f"train --a=x 'y z' /mnt{tmp_path}/w {tmp_path}-old/v"
    finally:
        options.command_line.reset(token)


def test_scripts_run_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python does if it is closed
    options.run_script(lambda: None)
    with pytest.raises(SystemExit):
        options.run_script(lambda: sys.exit(0))


@pytest.mark.parametrize("name", ["output", "output/below"])
def test_file_in_place_of_an_output_folder_is_reported(tmp_path, name, capsys):
    (tmp_path / "output").touch()
    with pytest.raises(SystemExit):
        options.run_script(lambda: write_json(tmp_path / name / "a.json", {}))
    expected = f"error: {tmp_path}/output is a file: expected a folder, or a name that is not in use\n"
    assert capsys.readouterr().err == expected


def test_other_existing_files_are_reported_as_the_system_does(tmp_path, capsys):
    with pytest.raises(SystemExit):
        options.run_script(tmp_path.mkdir)
    assert capsys.readouterr().err == f"error: [Errno 17] File exists: '{tmp_path}'\n"
