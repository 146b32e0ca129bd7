"""The benchmark of decoding: that it measures what it says."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[2] / "benchmarks/decoding.py"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(PATH.parent))  # as running the script does
    spec = importlib.util.spec_from_file_location("decoding_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_system_is_measured(benchmark):
    config = benchmark.BenchmarkConfig(model="emformer-5M", streams="2", seconds=4.0, rounds=1)
    figures = benchmark.measure(config)
    assert len(figures) == 10
    assert all(row["real_time_factor"] > 0 for row in figures)
    tokens = {(row["what"], row["system"]): row["tokens"] for row in figures}
    # The blank was set for 4 tokens a second; chunk by chunk the encoder says the same as over whole utterances.
    assert tokens["search", benchmark.GREEDY] == pytest.approx(32, abs=4)
    assert tokens["all", benchmark.GREEDY] == pytest.approx(tokens["search", benchmark.GREEDY], abs=2)
    assert tokens["plain", benchmark.GREEDY] == tokens["all", benchmark.GREEDY]
    assert tokens["search", f"torchaudio {benchmark.BEAM.removeprefix('modified ')}"] > 5


def test_torchaudio_gets_our_logits(benchmark):
    model, _, encoder_out = benchmark.prepare(benchmark.BenchmarkConfig(model="emformer-5M", streams="1", seconds=1.0))
    peer = benchmark.TorchaudioModel(model)
    one = torch.tensor([1])
    blank = torch.tensor([[benchmark.VOCAB_SIZE - 1]])
    with torch.no_grad():
        _, _, state = peer.predict(blank, one, None)
        predicted, _, _ = peer.predict(torch.tensor([[6]]), one, state)
        frames, _ = peer.transcribe(encoder_out[:, :1], one)
        logits, _, _ = peer.join(frames, one, predicted, one)
        expected = model.joiner(encoder_out[:, 0], model.decoder(torch.tensor([[0, 7]]), need_pad=False)[:, 0])[0]
    torch.testing.assert_close(logits[0, 0, 0], torch.cat([expected[1:], expected[:1]]))
