import pytest


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("training")


def test_all_parts_of_a_step_are_measured(benchmark, monkeypatch):
    """The parts end at hooks: a hook that is not called, or called twice, changes the number of parts."""
    for name, value in (("UTTERANCES", 2), ("FRAMES", 60), ("TOKENS", 4), ("PREVIOUS_UPDATES", 2)):
        monkeypatch.setattr(benchmark, name, value)
    step = benchmark.TimedStep("tiny", sparsity=0.7)
    before = [parameter.clone() for parameter in step.module.parameters()]
    parts = step(seed=1)
    assert len(parts) == len(benchmark.PARTS) == len(step(seed=2))
    assert all(seconds > 0 for seconds in parts)
    assert any((a != b).any() for a, b in zip(before, step.module.parameters(), strict=True))


def test_medians_and_ratios(benchmark):
    """The ratio is the median of the ratios of the rounds, not the ratio of the medians."""
    times = {"dense": [[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]], "pathways": [[2.0, 3.0], [2.0, 3.0], [2.0, 3.0]]}
    times["pathways"][1][0] = 6.0
    assert benchmark.rows_of("small", times) == [
        ["small, dense", "2.000", "2.000"],
        ["small, pathways", "2.000", "3.000"],
        ["small, ratio", "2.000", "1.500"],
    ]


def test_print_table_replaces_the_table_between_its_markers(benchmark, tmp_path):
    path = tmp_path / "report.md"
    path.write_text("above\n<!-- steps -->\nold\n<!-- end of steps -->\nbelow\n")
    for value in ("1", "2"):
        benchmark.print_table(["a"], [[value]], path, "steps")
    lines = path.read_text().splitlines()
    assert lines[:2] == ["above", "<!-- steps -->"] and lines[-2:] == ["<!-- end of steps -->", "below"]
    assert "| 2   |" in lines and "| 1   |" not in lines and "old" not in lines
    with pytest.raises(ValueError, match="no markers for the table overhead"):
        benchmark.print_table(["a"], [], path, "overhead")
