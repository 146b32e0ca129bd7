import pytest
from optional_packages import import_k2


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("rnnt_loss")


@pytest.mark.parametrize("joiner", ["sum", "model"])
def test_both_implementations_compute_the_same_loss(benchmark, joiner):
    import_k2()
    batch = benchmark.Batch(2, 12, 4)
    steps = [benchmark.LossStep(batch, joiner, name)() for name in benchmark.IMPLEMENTATIONS]
    assert steps[0][1] == pytest.approx(steps[1][1], rel=1e-4)
    assert all(len(seconds) == 2 and min(map(min, seconds)) > 0 for seconds, _ in steps)


def test_medians_and_ratios(benchmark):
    times = {"k2": [[(1.0, 2.0), (3.0, 4.0)]] * 3, "builtin": [[(0.5, 1.0), (0.5, 2.0)]] * 3}
    rows = benchmark.rows_of(benchmark.Batch(12, 125, 20), "sum", times)
    assert rows == [
        ["12 x 5 s, 20 tokens", "sum", "k2", "1000.0", "3000.0", "4000.0", "6000.0", "1.00", "1.00"],
        ["12 x 5 s, 20 tokens", "sum", "builtin", "500.0", "500.0", "1000.0", "3000.0", "4.00", "2.00"],
    ]


def test_peak_memory_includes_the_logits_and_their_gradient(benchmark):
    batch = benchmark.Batch(8, 800, 20)
    logits = 4e-6 * batch.utterances * batch.frames * benchmark.PRUNE_RANGE * benchmark.VOCAB_SIZE  # 64 MB
    small, large = (benchmark.peak_megabytes(size, "sum", "builtin") for size in (benchmark.Batch(1, 20, 4), batch))
    assert small < logits < 2 * logits < large
