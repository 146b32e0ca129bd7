import pytest
import torch


@pytest.fixture(scope="module")
def memory(load_benchmark):
    return load_benchmark("memory")


def test_tensors_that_share_storage_count_once(memory):
    flat = torch.zeros(1000)
    assert memory.megabytes([*flat.split(10), torch.zeros(10, dtype=torch.int8)]) == pytest.approx(4010 / 1e6)


def test_a_language_takes_one_bit_per_prunable_weight(memory):
    two, nine = (memory.measure("tiny", num_languages) for num_languages in (2, 9))
    assert two["weights"] == nine["weights"] and two["average"] == pytest.approx(2 * two["weights"], rel=0.01)
    assert nine["masks"] == pytest.approx(2 * two["masks"])
    assert 3 * two["masks"] < two["weights"] < 5 * two["masks"]
    assert two["optimizer"] == pytest.approx(3 * two["weights"], rel=0.15)
    assert two["peak"] > sum(two[name] for name in memory.OBJECTS)
