"""The benchmark of memory."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("memory_benchmark", FOLDER / "memory.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_tensors_that_share_memory_count_once(memory):
    flat = torch.zeros(1000)
    assert memory.megabytes([*flat.split(10), torch.zeros(10, dtype=torch.int8)]) == pytest.approx(4010 / 1e6)


def test_languages_cost_a_bit_for_every_prunable_weight(memory):
    few, many = (memory.held("tiny", number) for number in (2, 9))
    assert few["weights"] == many["weights"] and few["average"] == pytest.approx(2 * few["weights"], rel=0.01)
    assert many["masks"] == pytest.approx(2 * few["masks"])
    assert 3 * few["masks"] < few["weights"] < 5 * few["masks"]
    assert few["optimizer"] == pytest.approx(3 * few["weights"], rel=0.15)
    assert few["peak"] > sum(few[name] for name in memory.OBJECTS)
