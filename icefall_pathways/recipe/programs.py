"""Command lines of the scripts that the recipe runs."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from icefall_pathways import options

Config = TypeVar("Config")


def program(folder: str, name: str) -> tuple[str, ...]:
    """Return the command of a script: the script itself in the recipe's folder, else `python -m icefall_pathways`.

    Args:
      folder: Folder of the script, relative to the working directory of the recipe.
      name: The script's name without its suffix.
    """
    script = Path(folder) / f"{name}.py"
    # Check the content: other recipes of icefall have scripts of the same names.
    if script.exists() and b"icefall_pathways" in script.read_bytes():
        return sys.executable, str(script)
    return sys.executable, "-m", "icefall_pathways", name.replace("_", "-")


def option_flag(name: str) -> str:
    """Return the command-line name of the option that a field defines."""
    return f"--{name.replace('_', '-')}"


def option_words(**values: object) -> tuple[str, ...]:
    """Return `--some-option VALUE` for each argument `some_option=value`."""
    words: list[str] = []
    for name, value in values.items():
        words += [option_flag(name), as_typed(value)]
    return tuple(words)


def split_words(value: str) -> list[str]:
    """Split the value of an option that holds options, as a shell does: their values may have spaces in quotes.

    Raises:
      ValueError: A quote is not closed.
    """
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{value!r}: {error}; expected options as on a command line") from error


def as_typed(value: object) -> str:
    """Format `value` as users type it: 1 or 0 for booleans, 0.4 or 1 for floats."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def read_options(
    config_class: type[Config],
    description: str,
    argv: Sequence[str],
    default: Config | None = None,
    prog: str | None = None,
) -> Config:
    """Parse a command line whose -args options take options as values, such as `--train-args "--num-updates 10"`.

    The values of an -args option that occurs several times are joined.
    """
    words: list[str] = []
    args: dict[str, list[str]] = {}
    remaining = iter(argv)
    for word in remaining:
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        takes_options = option.startswith("--") and option.endswith("-args")
        if takes_options and (argument := value if equals else next(remaining, None)) is not None:
            args.setdefault(option, []).append(argument)
        else:
            words.append(word)
    words += [f"{option}={' '.join(values)}" for option, values in args.items()]
    return options.parse(config_class, description, words, default=default, prog=prog)


def read_args_option(config_class: type[Config], option: str, script: str, argv: Sequence[str]) -> Config:
    """Parse the options of a script, with those that an -args option of the recipe adds.

    Args:
      config_class: Dataclass of the script's options.
      option: The option of the recipe, such as --prepare-args.
      script: The script, as users call it.
      argv: All options of the script.

    Raises:
      ValueError: The script does not accept an option, which has been printed.
    """
    try:
        return read_options(config_class, option, argv, prog=script)
    except SystemExit as problem:
        if not problem.code:
            raise  # --help
        raise ValueError(f"{option}: expected options of {script}; the message above has the wrong one") from problem


def is_typed(name: str, argv: Sequence[str]) -> bool:
    """Return whether a command line has the option of a field."""
    return any(word.partition("=")[0].replace("-", "_") == f"__{name}" for word in argv)


def read_with_defaults(
    config_class: type[Config],
    description: str,
    argv: Sequence[str],
    select_defaults: Sequence[Callable[[Config, Config], Config]],
    prog: str | None = None,
) -> Config:
    """Parse a command line whose options select the defaults of others.

    What is typed replaces a default, except that an -args option, such as `--train-args "--dropout 0.1"`, is appended:
    of options that occur twice, scripts use the last one.

    Args:
      config_class: Dataclass of the options.
      description: Shown by `--help` above the options.
      argv: The arguments.
      select_defaults: Functions that are called one after the other with the options, parsed with the defaults so far,
        and these defaults; each returns the new defaults.
      prog: The program's name in usage and error messages.
    """
    without_help = [word for word in argv if word not in ("-h", "--help")]
    default = config_class()
    for select in select_defaults:
        default = select(_read_appending(config_class, description, without_help, default, prog), default)
    return _read_appending(config_class, description, argv, default, prog)


def _read_appending(
    config_class: type[Config], description: str, argv: Sequence[str], default: Config, prog: str | None
) -> Config:
    """Parse a command line; append typed -args options to their defaults."""
    config: Any = read_options(config_class, description, argv, default, prog)
    appended = {}
    for name in (field.name for field in dataclasses.fields(config)):
        if name.endswith("_args") and is_typed(name, argv):
            try:
                split_words(getattr(config, name))
            except ValueError as error:
                raise ValueError(f"{option_flag(name)}: {error}") from error
            appended[name] = f"{getattr(default, name)} {getattr(config, name)}".strip()
    return cast(Config, dataclasses.replace(config, **appended))
