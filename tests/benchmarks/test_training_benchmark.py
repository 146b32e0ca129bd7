"""The benchmark of training steps, and the tables that benchmarks write."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("training_benchmark", FOLDER / "training.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def test_every_part_of_a_step_is_measured(benchmark, monkeypatch):
    """The marks are hooks: one that is not reached, or comes twice, shows in the number of parts."""
    for name, value in (("UTTERANCES", 2), ("FRAMES", 60), ("TOKENS", 4), ("AGE", 2)):
        monkeypatch.setattr(benchmark, name, value)
    trainee = benchmark.Trainee("tiny", sparsity=0.7)
    before = [parameter.clone() for parameter in trainee.module.parameters()]
    parts = trainee.step(seed=1)
    assert len(parts) == len(benchmark.PARTS) == len(trainee.step(seed=2))
    assert all(clock > 0 for clock, _ in parts)
    assert any((a != b).any() for a, b in zip(before, trainee.module.parameters(), strict=True))


def test_medians_and_ratios(benchmark):
    steps = {"dense": [[(1.0, 2.0)] * 5, [(3.0, 2.0)] * 5], "pathways": [[(1.1, 3.0)] * 5, [(3.3, 3.0)] * 5]}
    assert benchmark.overhead_row("small", steps) == ["small", "1.100", "1.500"]
    row = benchmark.rows_of("small", steps)[0]
    assert row == ["small, dense", *["2.000"] * 5, "10.000", f"{10 / 2.02:.2f}"]


def test_a_table_is_renewed_in_its_place(benchmark, tmp_path):
    path = tmp_path / "report.md"
    path.write_text("above\n<!-- steps -->\nold\n<!-- end of steps -->\nbelow\n")
    for value in ("1", "2"):
        benchmark.put_table(path, "steps", ["a"], [[value]])
    lines = path.read_text().splitlines()
    assert lines[:2] == ["above", "<!-- steps -->"] and lines[-2:] == ["<!-- end of steps -->", "below"]
    assert "| 2   |" in lines and "| 1   |" not in lines and "old" not in lines
    with pytest.raises(ValueError, match="no place for the table overhead"):
        benchmark.put_table(path, "overhead", ["a"], [])
