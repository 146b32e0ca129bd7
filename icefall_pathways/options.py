"""Command lines derived from dataclasses: every option has one home, its field."""

import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import tyro

Config = TypeVar("Config")

_TRUE = ("1", "true", "yes")
_FALSE = ("0", "false", "no")


def _parse_bool(words: list[str]) -> bool:
    word = words[0].lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"expected one of 1, 0, true, false; found {words[0]!r}")
    return word in _TRUE


def _bool_as_icefall(type_info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Make booleans take a value, as icefall's do: `--use-fp16 1` or `--use-fp16 true`."""
    if type_info.type is not bool:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{1,0}",
        instance_from_str=_parse_bool,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(int(value))],
    )


class _FlowingHelp:
    """Lets `--help` break lines where they are full: tyro also breaks them where the docstrings in the code do."""

    def __init__(self) -> None:
        self._asking = False

    def __call__(self, type_info: tyro.constructors.StructTypeInfo) -> Any:
        if self._asking:
            return None  # tyro's own rules are asked next
        self._asking = True
        try:
            spec = tyro.constructors.ConstructorRegistry.get_struct_spec(type_info)
        finally:
            self._asking = False
        if not isinstance(spec, tyro.constructors.StructConstructorSpec):
            return spec
        fields = [dataclasses.replace(field, helptext=partial(_flowing, field.helptext)) for field in spec.fields]
        return dataclasses.replace(spec, fields=tuple(fields))


def _flowing(text: str | Callable[[], str | None] | None) -> str | None:
    found = text() if callable(text) else text
    return found and " ".join(found.split())


def parse(config_class: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Read a command line into `config_class`.

    Every field of the dataclass, and of the dataclasses in it, is an option: `max_duration` is `--max-duration`. The
    docstring below a field is its help.

    Args:
      config_class: A dataclass in which every field has a default.
      description: Shown above the options by `--help`.
      argv: The words after the script's name; None reads those of this process.
    """
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_bool_as_icefall)
    registry.struct_rule(_FlowingHelp())
    return tyro.cli(
        config_class,
        description=description,
        args=argv,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff, tyro.conf.OmitSubcommandPrefixes),
        registry=registry,
    )


def run_script(main: Callable[[], None]) -> None:
    """Run a script; an error its user can act on becomes one line and exit status 1.

    Other exceptions are defects of ours and keep their trace.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print("interrupted; what is finished is kept, run the same command again to go on", file=sys.stderr)
        sys.exit(getattr(interrupt, "exit_code", 130))


def to_dict(config: Any) -> dict[str, Any]:
    """The options of `config` as plain data that JSON holds; nested dataclasses become nested objects."""
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        values[field.name] = str(value) if isinstance(value, Path) else value
    return values


def from_dict(config_class: type[Config], values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; an option that `values` does not hold has its default.

    Raises:
      ValueError: `values` holds an option that `config_class` does not know.
    """
    hints = typing.get_type_hints(config_class)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"{config_class.__name__} has no option {', '.join(unknown)}: was it written by another version?"
        )
    return config_class(**{name: _from_plain(hints[name], value) for name, value in values.items()})


def _from_plain(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if value is not None and (hint is Path or Path in typing.get_args(hint)):
        return Path(value)
    return value
