"""The comparison of both stacks."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def stacks(load_benchmark):
    return load_benchmark("stacks")


def test_worker_measures_chunks_and_steps(stacks):
    with stacks._start_worker(Path(sys.executable)) as worker:
        assert all(stacks._measure(worker, case) > 0 for case in ("stream micro 1", "step micro"))


def test_missing_stack_is_reported(stacks, tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"no .*\.venv/bin/python: set up both stacks"):
        stacks.main(stacks.StacksConfig(rounds=1))


def test_failed_measurement_is_reported(stacks):
    message = "the measurement of 'stream unknown 1' failed"
    with stacks._start_worker(Path(sys.executable)) as worker, pytest.raises(ValueError, match=message):
        stacks._measure(worker, "stream unknown 1")
