"""Command line: `icefall-pathways COMMAND` and the recipe's scripts, from one table of commands."""

import ast
import difflib
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any, Protocol, cast

import icefall_pathways
from icefall_pathways.interrupts import NOT_RESUMABLE, RESUMABLE, exit_on_interrupt

with exit_on_interrupt():
    from icefall_pathways import options

#: Each command and the script of the recipe (in egs/mls/ASR) that runs it. The command's module in
#: `icefall_pathways.commands` has the script's name.
SCRIPTS = {
    "prepare": "prepare.sh",
    "run": "run.sh",
    "run-study": "run_study.sh",
    "train": "pruned_transducer_pathways/train.py",
    "prune": "pruned_transducer_pathways/prune.py",
    "decode": "pruned_transducer_pathways/decode.py",
    "streaming-decode": "pruned_transducer_pathways/streaming_decode.py",
    "transcribe": "pruned_transducer_pathways/transcribe.py",
    "serve": "pruned_transducer_pathways/serve.py",
    "calibrate-language-id": "pruned_transducer_pathways/calibrate_language_id.py",
    "export": "pruned_transducer_pathways/export.py",
    "report": "pruned_transducer_pathways/report.py",
    "compare": "pruned_transducer_pathways/compare.py",
    "latency": "pruned_transducer_pathways/latency.py",
    "study": "pruned_transducer_pathways/study.py",
    "make-mini-corpus": "local/make_mini_corpus.py",
    "download-mls": "local/download_mls.py",
    "get-corpus": "local/get_corpus.py",
    "prepare-manifests": "local/prepare_manifests.py",
    "compute-fbank": "local/compute_fbank.py",
    "compute-fbank-musan": "local/compute_fbank_musan.py",
    "train-bpe": "local/train_bpe.py",
    "train-ngram": "local/train_ngram.py",
    "index-cuts": "local/index_cuts.py",
    "export-shar": "local/export_shar.py",
}

_NOT_RESUMABLE_COMMANDS = {
    "transcribe",
    "serve",
    "calibrate-language-id",
    "export",
    "report",
    "compare",
    "latency",
    "study",
    "train-bpe",
    "train-ngram",
}

#: Hidden aliases: previous names of commands, and of options per command.
RENAMED_COMMANDS = {"calibrate-language": "calibrate-language-id"}
RENAMED_OPTIONS: dict[str, dict[str, str]] = {
    "calibrate-language-id": {"--listen-seconds": "--min-speech-seconds"},
}

_INSTALL_EXTRA = "install it with pip install '.[{}]' in the folder of the repository"
# Packages that only some commands need, and how to install them.
_OPTIONAL_PACKAGES = {
    "sounddevice": _INSTALL_EXTRA.format("mic"),
    "distributed": _INSTALL_EXTRA.format("dask"),
    **dict.fromkeys(
        (
            "multipart",
            "prometheus_client",
            "pydantic",
            "python_multipart",
            "starlette",
            "uvicorn",
            "websockets",
            "wyoming",
        ),
        _INSTALL_EXTRA.format("serve"),
    ),
    **dict.fromkeys(
        ("babel", "espeakng_loader", "matplotlib", "num2words", "tensorboard"),
        _INSTALL_EXTRA.format("train"),
    ),
}

_PROGRAM = "icefall-pathways"
_USAGE = """
usage: icefall-pathways COMMAND [OPTIONS]

{package}

Commands:
{commands}

icefall-pathways COMMAND --help lists the options of a command.
"""


class Command(Protocol):
    """Interface of the modules in `icefall_pathways.commands`.

    Attributes:
      Config: Dataclass of the options.
    """

    Config: type

    def run(self, config: Any) -> None:
        """Run the command."""


def load_command(name: str) -> Command:
    """Import the module of a command."""
    return cast(Command, import_module(f"icefall_pathways.commands.{name.replace('-', '_')}"))


def read_config(name: str, argv: Sequence[str], prog: str | None = None) -> Any:
    """Read the options of a command.

    Args:
      name: The command.
      argv: The command-line arguments after the command.
      prog: The program's name in usage and error messages; None: the name of the running script.

    Returns:
      An instance of the command's `Config`.
    """
    command = load_command(name)
    help_text = cleandoc(command.__doc__ or "")
    if prog is not None and prog.startswith(_PROGRAM):
        for other, script in SCRIPTS.items():
            help_text = re.sub(rf"(torchrun .*)\./{re.escape(script)}", rf"\1-m icefall_pathways {other}", help_text)
            help_text = help_text.replace(f"./{script}", f"{_PROGRAM} {other}")
    words = _replace_renamed(argv, RENAMED_OPTIONS.get(name, {}))
    read = getattr(command, "read", options.parse)
    return read(command.Config, help_text, words, prog=prog)


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run a command; report an error that the user can fix in one line, with exit status 1.

    Args:
      name: The command.
      argv: The command-line arguments after the command; None: those of the running script.
      prog: The program's name in usage and error messages; None: the name of the running script.
    """
    words = sys.argv[1:] if argv is None else argv

    def run() -> None:
        token = options.command_line.set((_PROGRAM, name, *words))
        try:
            with exit_on_interrupt():
                command = load_command(name)
            command.run(read_config(name, words, prog))
        except ModuleNotFoundError as error:
            if error.name not in _OPTIONAL_PACKAGES:
                raise
            raise ValueError(f"{error.name} is not installed: {_OPTIONAL_PACKAGES[error.name]}") from error
        finally:
            options.command_line.reset(token)

    options.run_script(run, NOT_RESUMABLE if name in _NOT_RESUMABLE_COMMANDS else RESUMABLE)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command `icefall-pathways`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        options.run_script(lambda: print(usage()))
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(icefall_pathways.__version__)
        return
    name = words[0].replace("_", "-")
    name = RENAMED_COMMANDS.get(name, name)
    if name not in SCRIPTS:
        close = difflib.get_close_matches(name, SCRIPTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: unknown command '{words[0]}'{hint} (icefall-pathways --help lists them)", file=sys.stderr)
        sys.exit(2)
    run_command(name, words[1:], prog=f"{_PROGRAM} {name}")


def usage() -> str:
    """Return the usage message: every command with the first line of its help."""
    width = max(map(len, SCRIPTS))
    commands = "\n".join(f"  {name:<{width}}  {_summary(name)}" for name in SCRIPTS)
    return _USAGE.strip().format(package=icefall_pathways.__doc__, commands=commands)


def _summary(name: str) -> str:
    """Return the first line of a command's help, read from its source: importing every command takes seconds."""
    path = Path(__file__).with_name("commands") / f"{name.replace('-', '_')}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0]


def _replace_renamed(argv: Sequence[str], renamed: dict[str, str]) -> list[str]:
    """Return the arguments with previous option names replaced by the current ones."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=")
        words.append(renamed.get(option.replace("_", "-"), option) + equals + value)
    return words


if __name__ == "__main__":
    main()
