"""The console command `icefall-pathways` and the recipe's scripts are the same commands."""

import importlib
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import icefall_pathways
from icefall_pathways import cli, options

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs" / "mls" / "ASR"


def test_every_command_has_a_module_and_a_script():
    modules = {path.stem for path in Path(cli.__file__).with_name("commands").glob("*.py")} - {"__init__"}
    assert modules == {name.replace("-", "_") for name in cli.SCRIPTS}
    assert all(cli.load_command(name).__doc__ for name in cli.SCRIPTS)
    assert all((RECIPE / script).is_file() for script in cli.SCRIPTS.values())


@pytest.mark.parametrize("path", sorted(RECIPE.glob("*/*.py")), ids=lambda path: path.name)
def test_script_runs_the_command_of_the_same_name(path):
    name = path.stem.replace("_", "-")
    assert f'run_command("{cli.RENAMED_COMMANDS.get(name, name)}")' in path.read_text()


@pytest.mark.parametrize("name", ["prepare", "run", "run-study"])
def test_shell_script_runs_its_command(name):
    text = (RECIPE / cli.SCRIPTS[name]).read_text()
    assert f'run_command("{name}", prog="./{cli.SCRIPTS[name]}")' in text


def test_commands_are_listed_with_a_summary(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    for name in cli.SCRIPTS:
        assert any(line.startswith(f"  {name}  ") and line.endswith(".") for line in listed.splitlines()), name


def test_version_option_prints_the_package_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"{icefall_pathways.__version__}\n"


def test_unknown_command_is_reported_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown command 'trian'; did you mean train?")


def test_user_error_has_no_traceback():
    words = ["compare", "--system-a", "/nowhere"]
    completed = subprocess.run(
        [sys.executable, "-m", "icefall_pathways", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert completed.returncode == 1
    (line,) = completed.stderr.splitlines()
    assert line.startswith("error: ") and "/nowhere" in line


def test_missing_optional_package_error_states_how_to_install_it(monkeypatch, capsys):
    command = types.SimpleNamespace(Config=object, read=lambda *_arguments, **_options: None)
    command.run = lambda _config: importlib.import_module("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(cli, "load_command", lambda _name: command)
    with pytest.raises(SystemExit):
        cli.run_command("report", [])
    assert capsys.readouterr().err == (
        "error: matplotlib is not installed: install it with pip install '.[train]' in the folder of the repository\n"
    )


def test_help_shows_the_name_of_the_called_program(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["./pruned_transducer_pathways/decode.py", "--help"])
    for prog, example in (
        ("icefall-pathways decode", "icefall-pathways decode --exp-dir exp/pathways"),
        (None, "./pruned_transducer_pathways/decode.py --exp-dir exp/pathways"),
    ):
        with pytest.raises(SystemExit):
            cli.read_config("decode", ["--help"], prog)
        text = capsys.readouterr().out
        assert example in text
        assert (prog or "decode.py") in text.splitlines()[0]


def test_help_of_the_console_command_runs_it_with_torchrun_as_a_module(capsys):
    with pytest.raises(SystemExit):
        cli.read_config("train", ["--help"], "icefall-pathways train")
    assert "torchrun --nnodes 2 --nproc_per_node 8 -m icefall_pathways train --exp-dir" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--old-penalty", "0.5"], ["--old_penalty=0.5"]])
def test_renamed_option_accepts_its_previous_name(words, monkeypatch):
    monkeypatch.setitem(cli.RENAMED_OPTIONS, "decode", {"--old-penalty": "--blank-penalty"})
    assert cli.read_config("decode", words) == cli.read_config("decode", ["--blank-penalty", "0.5"])


def test_aliases_point_to_existing_names():
    assert set(cli.RENAMED_COMMANDS.values()) <= set(cli.SCRIPTS)
    assert not set(cli.RENAMED_COMMANDS) & set(cli.SCRIPTS)
    for name, renamed in cli.RENAMED_OPTIONS.items():
        defaults = options.to_dict(cli.read_config(name, []))
        flat = {key for value in defaults.values() if isinstance(value, dict) for key in value} | set(defaults)
        assert {new.removeprefix("--").replace("-", "_") for new in renamed.values()} <= flat


def test_renamed_command_accepts_its_previous_name(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "run_command", lambda name, *_arguments, **_options: called.append(name))
    cli.main(["calibrate-language"])
    cli.main(["streaming_decode"])
    assert called == ["calibrate-language-id", "streaming-decode"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "code",
    [
        "from icefall_pathways import cli; cli.main(['--help'])",
        "from icefall_pathways import cli; cli.main(['compare', '--help'])",
        "from icefall_pathways import options; options.run_script(lambda: [print('line') for _ in range(100_000)])",
    ],
    ids=["usage", "help", "output"],
)
def test_closed_standard_output_ends_a_command_silently(code, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        completed = subprocess.run(
            [sys.executable, "-c", code],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writer)
    assert (completed.returncode, completed.stderr) == (141, "")


def test_other_broken_pipes_are_reported():
    code = "from icefall_pathways import options\ndef fail(): raise BrokenPipeError('worker')\noptions.run_script(fail)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (1, "error: worker\n")


# As native code does with a KeyboardInterrupt.
SLOW_IMPORT = """
import pathlib, time
pathlib.Path(__file__).with_name("started").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise RuntimeError("KeyboardInterrupt: <EMPTY MESSAGE>")
"""


@pytest.mark.parametrize("module", ["tyro", "torch"])
def test_ctrl_c_during_imports_ends_a_command_without_traceback(tmp_path, module):
    (tmp_path / f"{module}.py").write_text(SLOW_IMPORT)
    process = subprocess.Popen(
        [sys.executable, RECIPE / "pruned_transducer_pathways" / "train.py"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run in the background
    )
    wait_until(lambda: (tmp_path / "started").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("name", "consequence"),
    [
        ("decode", "finished work is kept, run the same command again to resume"),
        ("transcribe", "what is already written is kept, and the same command starts from the beginning"),
    ],
)
def test_ctrl_c_reports_whether_a_command_can_resume(monkeypatch, capsys, name, consequence):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_config", interrupt)
    with pytest.raises(SystemExit) as exit_status:
        cli.run_command(name, [])
    assert exit_status.value.code == 130
    assert capsys.readouterr().err == f"interrupted; {consequence}\n"


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
