"""The benchmarks of GPUs, as far as they do not need one."""

import pytest

from icefall_pathways.recipe.jobs import check_graph


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("gpu")


def test_jobs_are_the_demo_in_a_precision(benchmark, tmp_path):
    config = benchmark.GpuConfig(output=tmp_path, num_updates=600)
    jobs = benchmark.jobs_of(benchmark.recipe(config, "float16"))
    check_graph(jobs)
    trainings = [" ".join(job.steps[0].command) for job in jobs[:3]]
    assert all("--use-fp16 1" in command and "--rnnt-loss builtin" in command for command in trainings)
    assert "--num-updates 600 " in trainings[0] and "--num-updates 3000" not in trainings[0]
    assert "--updates-per-round 20 " in trainings[1]
    assert "--num-updates 300 " in trainings[2] and f"--masks {tmp_path}/float16/masks/" in trainings[2]
    assert len(jobs) == 7


def test_systems_without_metrics_are_left_out(benchmark, tmp_path):
    systems = [tmp_path / name for name in ("new", "empty", "trained")]
    for folder, records in zip(
        systems[1:], ("", '{"kind": "speed", "update": 5, "updates_per_second": 2.0}\n'), strict=True
    ):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(records)
    benchmark.write_results(tmp_path / "results", systems)
    table = (tmp_path / "results" / "results.md").read_text()
    assert "| trained" in table and "| empty" not in table and "| new" not in table


def test_lengths_are_those_of_the_published_batches(load_benchmark):
    benchmark = load_benchmark("rnnt_loss_cuda")
    frames, tokens = benchmark.lengths("random")
    assert len(frames) == 30 and frames.min() < 100 and 400 <= frames.max() <= 420 and (tokens < frames).all()
    frames, _ = benchmark.lengths("sorted")
    assert frames.sum().item() == pytest.approx(10_000, rel=0.01)
