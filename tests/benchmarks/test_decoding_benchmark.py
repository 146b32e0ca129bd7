import pytest
import torch
from optional_packages import import_k2, import_torchaudio


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    import_k2()  # its searches include k2's and torchaudio's
    import_torchaudio()
    return load_benchmark("decoding")


def test_all_systems_are_measured(benchmark):
    config = benchmark.BenchmarkConfig(streams="2", seconds=4.0, rounds=1)
    figures = benchmark.measure(config, "emformer-5M")
    assert len(figures) == 10
    assert all(row["real_time_factor"] > 0 for row in figures)
    tokens = {(row["part"], row["system"]): row["tokens"] for row in figures}
    # The blank bias was set for 4 tokens a second, and streaming encodes as the whole utterance.
    assert tokens["search", benchmark.GREEDY] == pytest.approx(32, abs=4)
    assert tokens["all", benchmark.GREEDY] == pytest.approx(tokens["search", benchmark.GREEDY], abs=2)
    assert tokens["plain", benchmark.GREEDY] == tokens["all", benchmark.GREEDY]
    assert tokens["search", f"torchaudio {benchmark.BEAM.removeprefix('modified ')}"] > 5


def test_torchaudio_search_gets_the_logits_of_the_joiner(benchmark):
    model, _, encoder_out = benchmark.prepare(benchmark.BenchmarkConfig(streams="1", seconds=1.0), "emformer-5M")
    adapter = benchmark.TorchaudioModel(model)
    lens = torch.tensor([1])
    blank = torch.tensor([[benchmark.VOCAB_SIZE - 1]])
    with torch.no_grad():
        _, _, state = adapter.predict(blank, lens, None)
        predicted, _, _ = adapter.predict(torch.tensor([[6]]), lens, state)
        frames, _ = adapter.transcribe(encoder_out[:, :1], lens)
        logits, _, _ = adapter.join(frames, lens, predicted, lens)
        expected = model.joiner(encoder_out[:, 0], model.decoder(torch.tensor([[0, 7]]), need_pad=False)[:, 0])[0]
    torch.testing.assert_close(logits[0, 0, 0], torch.cat([expected[1:], expected[:1]]))
