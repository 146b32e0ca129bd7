"""Damaged files of all kinds: a result or the documented error, never a traceback, a hang or a crash.

FUZZ_EXAMPLES sets the number of inputs of each reader, see benchmarks/fuzz.md.
"""

from contextlib import nullcontext

import pytest
from fuzz_cases import CASES, check_case
from fuzzing import Case, damaged, examples
from hypothesis import HealthCheck, given, settings
from isolated import IsolatedFunction, misbehave


@pytest.fixture(scope="module")
def isolated_check():
    function = IsolatedFunction(check_case)
    yield function
    function.close()


@pytest.mark.parametrize("name", CASES)
def test_valid_files_are_read(name):
    CASES[name].check_valid()


@pytest.mark.parametrize("name", CASES)
def test_files_do_not_depend_on_the_time(monkeypatch, name):
    """Hypothesis stops if the same choices give other files."""
    case = CASES[name]
    sealed = [case.seal(dict(contents)) for contents in case.valid()]
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert [case.seal(dict(contents)) for contents in case.valid()] == sealed


@pytest.mark.parametrize("name", CASES)
def test_damaged_files_give_a_result_or_the_documented_error(isolated_check, name):
    @settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
    @given(files=damaged(CASES[name]))
    def check(files):
        failure = isolated_check((name, files))
        assert failure is None, failure

    check()


def test_hangs_crashes_and_tracebacks_are_found():
    function = IsolatedFunction(misbehave, cpu_seconds=0.3)
    assert function("return") is None
    assert function("hang").startswith("hangs")
    assert function("crash") == "crashed with exit code -6"
    assert "ValueError: raise" in function("raise")
    assert "MemoryError" in function("memory")
    assert function("return") is None
    function.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no name"), AssertionError),
        (ValueError("{folder}: " + 5000 * "x"), AssertionError),
        (KeyError("{folder}"), KeyError),
        (ValueError("{folder} is damaged"), None),
    ],
)
def test_undocumented_and_unhelpful_errors_are_found(error, expected):
    def read(folder):
        raise type(error)(error.args[0].replace("{folder}", str(folder)))

    with pytest.raises(expected) if expected else nullcontext():
        Case(lambda: [{}], (read,)).check({"a": b""})
