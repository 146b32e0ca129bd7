"""Every numeric option of every command accepts the values in its range, and no others."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from icefall_pathways import cli
from icefall_pathways.ranges import NumericField, Options, Range, check_number, numeric_fields, parse_numbers


def option_classes(config_class: type) -> Iterator[type]:
    """Yield the dataclasses that define the options of a command."""
    hints = typing.get_type_hints(config_class)
    nested = [hints[field.name] for field in dataclasses.fields(config_class)]
    nested = [hint for hint in nested if dataclasses.is_dataclass(hint)]
    if len(nested) < len(hints):
        yield config_class
    for hint in nested:
        yield from option_classes(hint)


CLASSES = sorted({c for name in cli.SCRIPTS for c in option_classes(cli.load_command(name).Config)}, key=str)
FIELDS = [(config_class, field) for config_class in CLASSES for field in numeric_fields(config_class)]


def invalid_values(field: NumericField) -> list[float]:
    """Return values that the field rejects: not finite, just outside of its range, too large for 64 bits."""
    step = 1 if field.type is int else 1e-9
    accepted = field.accepted
    values: list[float] = [2**63, -(2**70)] if field.type is int else [math.nan, math.inf, -math.inf]
    if math.isfinite(accepted.minimum):
        values.append(accepted.minimum - (0 if accepted.open_minimum else step))
    if math.isfinite(accepted.maximum):
        values.append(accepted.maximum + (0 if accepted.open_maximum else step))
    return values


def test_every_option_dataclass_checks_its_numbers():
    assert [c for c in CLASSES if not issubclass(c, Options)] == []
    assert len(CLASSES) > 20 and len({field.option for _, field in FIELDS}) > 90


@pytest.mark.parametrize(
    ("config_class", "field"), FIELDS, ids=[f"{c.__module__.split('.')[-1]}.{c.__name__}.{f.name}" for c, f in FIELDS]
)
def test_numbers_out_of_range_are_reported_with_option_value_and_range(config_class: type, field: NumericField):
    for value in invalid_values(field):
        with pytest.raises(ValueError) as error:
            config_class(**{field.name: value})
        message = str(error.value)
        assert message.startswith(f"{field.option} is {value}: expected ") and "\n" not in message
    with pytest.raises(ValueError, match=f"^{field.option.split(' ')[0]}.* is '1': expected a"):
        config_class(**{field.name: "1"})
    default = next(f.default for f in dataclasses.fields(config_class) if f.name == field.name)
    check_number(field.option, default, field.accepted)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("latency", "--ngram-lm x --ngram-lm-scale inf", "--ngram-lm-scale is inf"),
        ("latency", "--streams 0", "--streams is 0: expected at least 1"),
        ("calibrate-language-id", "--seconds nan", "--seconds is nan: expected at least 0"),
        ("decode", "--blank-penalty nan", "--blank-penalty is nan"),
        ("decode", "--decoding-method fast_beam_search --beam nan", "--beam is nan"),
        ("streaming-decode", "--num-active-paths 0 --decoding-method modified_beam_search", "--num-active-paths"),
        ("transcribe", "a.wav --rule1-min-trailing-silence inf", "--rule1-min-trailing-silence is inf"),
        ("train", "--base-lr -1", "--base-lr is -1.0: expected at least 0"),
        ("prune", "--sparsity 1", "--sparsity is 1.0: expected at least 0 and less than 1"),
        ("run-study", "--sparsities nan", "--sparsities is nan"),
        ("run-study", "--seeds x", "--seeds is 'x': 'x' is not a number"),
    ],
)
def test_command_line_reports_the_option(command: str, arguments: str, message: str, capsys: Any):
    with pytest.raises(SystemExit) as stop:
        cli.run_command(command, arguments.split())
    output = " ".join(capsys.readouterr().err.replace("│", " ").split())  # in a box
    assert stop.value.code == 2
    assert message in output and "Traceback" not in output


def test_range_describes_its_limits():
    assert str(Range()) == "a finite number"
    assert str(Range(0, 1, open_minimum=True)) == "more than 0 and at most 1"
    assert math.nan not in Range() and 1 not in Range(0, 1, open_maximum=True) and 1 in Range(0, 1)


def test_numbers_in_text_are_parsed_and_checked():
    assert parse_numbers("--seconds", "0.5 2", float) == [0.5, 2.0]
    for text, message in (("", "is empty"), ("1 x", "'x' is not a number"), ("1 -2", "is -2: expected at least 0")):
        with pytest.raises(ValueError, match=f"^--seeds {message}|^--seeds is .*{message}"):
            parse_numbers("--seeds", text, int)


def test_unannotated_numbers_are_not_negative():
    @dataclasses.dataclass(frozen=True)
    class Example(Options):
        size: int = 0
        offset: Annotated[float, Range()] = 0.0

    assert Example(size=3, offset=-1).offset == -1
    with pytest.raises(ValueError, match="expected at least 0"):
        Example(size=-1)
    with pytest.raises(ValueError, match="expected an integer"):
        Example(size=1.0)
