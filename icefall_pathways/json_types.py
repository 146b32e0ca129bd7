"""Checks of the types of JSON values, which may be damaged or from an untrusted source."""

import math
from typing import Any

from icefall_pathways.errors import quote

#: The type of numbers with and without decimals.
NUMERIC = (int, float)
#: Key of an expected object whose value is the type of all fields that it does not name.
ANY_KEY = "*"

_NAMES = {str: "a string", int: "an integer", NUMERIC: "a number", dict: "an object", list: "a list"}


def check_types(value: Any, expected: Any, name: str = "", complete: bool = False) -> None:
    """Check the type of a JSON value, and of those in it.

    Args:
      value: The value.
      expected: Its type; for an object a dict with the types of its fields, for a list one with the type of its items.
        Other fields are ignored.
      name: Name of the value in messages.
      complete: Require all fields that `expected` names.

    Raises:
      ValueError: A value has another type, or a required field is missing; the message names it.
    """
    expected_type: Any = type(expected) if isinstance(expected, dict | list) else expected
    if not isinstance(value, expected_type) or isinstance(value, bool):
        raise ValueError(f"{name or 'it'} is {quote(str(value))}, expected {_NAMES[expected_type]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name or 'it'} is {value}, expected a finite number")
    if isinstance(expected, list):
        for item in value:
            check_types(item, expected[0], f"an item of {name or 'it'}", complete)
    elif isinstance(expected, dict):
        missing = [key for key in expected if key not in value and key != ANY_KEY]
        if complete and missing:
            raise ValueError(f"{name or 'it'} lacks {', '.join(missing)}")
        for key, item in value.items():
            inner = expected.get(key, expected.get(ANY_KEY))
            if inner is not None:
                check_types(item, inner, f"{name}.{key}".lstrip("."), complete)
