"""Ranges of numeric options: annotations of the fields of option dataclasses, and the one check of them."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar

Number = TypeVar("Number", int, float)

_MAX_INT = 2**63 - 1  # the largest integer that torch and numpy accept


@dataclass(frozen=True)
class Range:
    """The values that a numeric option accepts; NaN and infinity are never among them.

    Attributes:
      minimum: The smallest value.
      maximum: The largest value.
      open_minimum: Exclude the minimum itself.
      open_maximum: Exclude the maximum itself.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    open_minimum: bool = False
    open_maximum: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.minimum if self.open_minimum else value >= self.minimum
        below = value < self.maximum if self.open_maximum else value <= self.maximum
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        lower = f"{'more than' if self.open_minimum else 'at least'} {self.minimum:.12g}"
        upper = f"{'less than' if self.open_maximum else 'at most'} {self.maximum:.12g}"
        limits = [lower] * math.isfinite(self.minimum) + [upper] * math.isfinite(self.maximum)
        return " and ".join(limits) or "a finite number"


PositiveInt = Annotated[int, Range(1)]
PositiveFloat = Annotated[float, Range(0, open_minimum=True)]
SignedFloat = Annotated[float, Range()]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, open_maximum=True)]
SEEDS = Range(0, 2**32 - 1)
"""Seeds that Python, numpy and torch accept."""
Seed = Annotated[int, SEEDS]
Port = Annotated[int, Range(1, 65535)]
Stage = Annotated[int, Range(-1)]
"""Stages of scripts; as in icefall, -1 is before the first."""

#: Range of numeric options without an annotation.
NOT_NEGATIVE = Range(0)


class Options:
    """Base class of option dataclasses: the values of all numeric fields are checked when an instance is created.

    A number is finite and at least 0, unless the type of the field is annotated with another `Range`.

    Raises:
      ValueError: A value is out of range; the message names the option, its value and the accepted values.
    """

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(config: Any) -> None:
    """Check the numeric fields of an option dataclass, as `Options` does.

    Raises:
      ValueError: A value is out of range.
    """
    for field in numeric_fields(config.__class__):
        value = getattr(config, field.name)
        if not isinstance(value, int | field.type) or isinstance(value, bool):
            kind = "an integer" if field.type is int else "a number"
            raise ValueError(f"{field.option} is {value!r}: expected {kind}")
        check_number(field.option, value, field.accepted)


def check_number(option: str, value: float, accepted: Range = NOT_NEGATIVE) -> None:
    """Check one number.

    Args:
      option: Name of the option, for the error message.
      value: The number; an integer must also fit into 64 bits.
      accepted: The accepted values.

    Raises:
      ValueError: It is out of range.
    """
    if isinstance(value, int) and value > _MAX_INT:
        raise ValueError(f"{option} is {value}: expected at most {min(accepted.maximum, _MAX_INT):.12g}")
    if value not in accepted:
        raise ValueError(f"{option} is {value}: expected {accepted}")


def parse_numbers(
    option: str, text: str, number_type: type[Number], accepted: Range = NOT_NEGATIVE, distinct: bool = False
) -> list[Number]:
    """Parse numbers separated by spaces, at least one.

    Raises:
      ValueError: There is none, a word is not a number or out of range, or a number is repeated although all have to be
        distinct; the message names `option`.
    """
    numbers = []
    for word in text.split():
        try:
            numbers.append(number_type(word))
        except ValueError:
            raise ValueError(f"{option} is {text!r}: {word!r} is not a number") from None
        check_number(option, numbers[-1], accepted)
    if not numbers:
        raise ValueError(f"{option} is empty: expected numbers separated by spaces")
    if distinct and len(set(numbers)) < len(numbers):
        raise ValueError(f"{option} is {text!r}: expected each number once")
    return numbers


def option_name(config_class: type, field: str) -> str:
    """Return the command-line name of a field, and its Python name if `tyro.conf.arg` gives it another one."""
    annotations = typing.get_args(typing.get_type_hints(config_class, include_extras=True)[field])[1:]
    names = [item.name for item in annotations if getattr(item, "name", None)]
    return f"--{names[0]} (in Python: {field})" if names else f"--{field.replace('_', '-')}"


class NumericField(NamedTuple):
    """A numeric field of an option dataclass.

    Attributes:
      name: Name of the field.
      option: Name of the option.
      type: int or float.
      accepted: The accepted values.
    """

    name: str
    option: str
    type: type[int] | type[float]
    accepted: Range


@cache
def numeric_fields(config_class: type) -> tuple[NumericField, ...]:
    """Return the numeric fields of a dataclass."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    fields = []
    for name in (field.name for field in dataclasses.fields(config_class)):
        is_annotated = typing.get_origin(hints[name]) is Annotated
        hint, *annotations = typing.get_args(hints[name]) if is_annotated else (hints[name],)
        if hint in (int, float):
            accepted = next((item for item in annotations if isinstance(item, Range)), NOT_NEGATIVE)
            fields.append(NumericField(name, option_name(config_class, name), hint, accepted))
    return tuple(fields)
