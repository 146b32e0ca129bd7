"""Command-line parsing and JSON serialization for configuration dataclasses: one field defines one option."""

import dataclasses
import os
import re
import select
import shlex
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tyro

from icefall_pathways.interrupts import RESUMABLE, report_interrupt

Config = TypeVar("Config")

#: Program and arguments of the command that runs; empty in Python programs that call the library.
command_line: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=())

_TRUE = ("1", "true", "yes")
_FALSE = ("0", "false", "no")


def _parse_bool(words: list[str]) -> bool:
    word = words[0].lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"expected one of 1, 0, true, false; found {words[0]!r}")
    return word in _TRUE


def _bool_with_value(type_info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Make boolean options take a value, as in icefall: `--use-fp16 1` or `--use-fp16 true`."""
    if type_info.type is not bool:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{1,0}",
        instance_from_str=_parse_bool,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(int(value))],
    )


class _ReflowHelp:
    """Remove the line breaks of docstrings from help texts, so that `--help` wraps lines at the terminal width."""

    def __init__(self) -> None:
        self._in_default_rules = False

    def __call__(self, type_info: tyro.constructors.StructTypeInfo) -> Any:
        if self._in_default_rules:
            return None  # falls through to the default rules of tyro
        self._in_default_rules = True
        try:
            spec = tyro.constructors.ConstructorRegistry.get_struct_spec(type_info)
        finally:
            self._in_default_rules = False
        if not isinstance(spec, tyro.constructors.StructConstructorSpec):
            return spec
        fields = [dataclasses.replace(field, helptext=partial(_reflow, field.helptext)) for field in spec.fields]
        return dataclasses.replace(spec, fields=tuple(fields))


def _reflow(text: str | Callable[[], str | None] | None) -> str | None:
    help_text = text() if callable(text) else text
    return help_text and " ".join(help_text.split())


def parse(
    config_class: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    default: Config | None = None,
    prog: str | None = None,
) -> Config:
    """Parse a command line into an instance of `config_class`.

    Every field of the dataclass and of its nested dataclasses is an option: `max_duration` is `--max-duration`. The
    docstring below a field is its help text.

    Args:
      config_class: A dataclass in which every field has a default.
      description: Shown by `--help` above the options.
      argv: The arguments after the name of the script; None: the arguments of this process.
      default: Values of options that are not given; None: the defaults of the fields.
      prog: The program name in usage and error messages; None: the name of the running script.

    Raises:
      SystemExit: An argument is invalid (the error has been printed), or `--help` is one of them.
    """
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_bool_with_value)
    registry.struct_rule(_ReflowHelp())
    return tyro.cli(
        config_class,
        description=description,
        args=argv,
        default=tyro.MISSING_NONPROP if default is None else default,
        prog=prog,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff, tyro.conf.OmitSubcommandPrefixes),
        registry=registry,
    )


def run_script(main: Callable[[], None], after_interrupt: str = RESUMABLE) -> None:
    """Run the main function of a script; report a user-actionable error in one line and exit with status 1.

    ValueError and OSError are user-actionable. Other exceptions are bugs and keep their traceback. If the reader of
    standard output has closed it, as `head` does, exit without a message and with the status of SIGPIPE.

    Args:
      main: The main function.
      after_interrupt: Reported after Ctrl-C: `RESUMABLE` or `NOT_RESUMABLE`.
    """
    try:
        try:
            main()
        except SystemExit:  # for example of --help
            _flush_stdout()
            raise
        _flush_stdout()
    except BrokenPipeError as error:
        if not _stdout_is_closed():
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes standard output at exit
        sys.exit(128 + signal.SIGPIPE)
    except (ValueError, OSError) as error:
        print(f"error: {_file_in_place_of_folder(error) or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        report_interrupt(after_interrupt)
        sys.exit(getattr(interrupt, "exit_code", 130))


def _file_in_place_of_folder(error: ValueError | OSError) -> str | None:
    """Return the message if a folder could not be created because there is a file; None for other errors."""
    if not isinstance(error, FileExistsError | NotADirectoryError) or not isinstance(error.filename, str | Path):
        return None
    path = Path(error.filename)
    file = next((file for file in (path, *path.parents) if file.is_file()), None)
    return None if file is None else f"{file} is a file: expected a folder, or a name that is not in use"


def _flush_stdout() -> None:
    if sys.stdout is not None:  # it was closed when Python started
        sys.stdout.flush()


def _stdout_is_closed() -> bool:
    """Return True if standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def quoted_command_line() -> str | None:
    """Return the command that runs, quoted for a shell, with paths below the working directory relative to it.

    Return None if no command runs.
    """
    folder = re.escape(f"{Path.cwd()}{os.sep}")
    # Only at the start of a path: other folders may contain one of the same name.
    return shlex.join(re.sub(rf"(?:^|(?<=[\s=])){folder}", "", word) for word in command_line.get()) or None


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to JSON-serializable data; nested dataclasses become nested dicts."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        values[field.name] = str(value) if isinstance(value, Path) else value
    return values


def from_dict(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Convert the result of `to_dict` back to a configuration; missing options get their defaults.

    Raises:
      ValueError: `values` contains an option that `config_class` does not have.
    """
    hints = typing.get_type_hints(config_class)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"{config_class.__name__} has no option {', '.join(unknown)}: was it written by another version of this "
            "project?"
        )
    return config_class(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if value is not None and (hint is Path or Path in typing.get_args(hint)):
        return Path(value)
    return value
