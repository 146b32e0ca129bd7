"""Latency on clocks that are told what computing takes."""

import json
import math
from itertools import count

import pytest
import torch

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.latency import Latency, LatencyConfig, Simulation, format_latency
from icefall_pathways.decoding.streaming import Source, StreamingDecoder
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.searches import GreedySearch, Hypothesis, ModifiedBeamSearch

PACKET = 0.04
LENGTHS = [16000, 9999, 23456, 12800, 100]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    sizes = {"num_encoder_layers": 1, "encoder_dim": 16, "nhead": 2, "dim_feedforward": 16, "decoder_dim": 16}
    model = build_model(ModelConfig(**sizes, joiner_dim=16, subsampling_channels="2,4"), vocab_size=20).eval()
    with torch.no_grad():
        model.joiner.encoder_proj.weight *= 8
        model.joiner.output_linear.weight *= 8
    return model


@pytest.fixture
def utterances():
    signals = [torch.randn(length) * 0.1 for length in LENGTHS]
    return [signal * (torch.arange(len(signal)) // 1000 % 3 + 0.01) for signal in signals]


def _decoder(model, search=GreedySearch):
    return StreamingDecoder(model, search(model), FbankConfig())


def _no_time():
    return 0.0


def _shown(model, frame, seconds):
    """When an encoder frame can be shown at the earliest: its chunk's last packet has arrived, or the last of all."""
    chunk = frame // (model.chunk_shift // 4)
    feature_frames = chunk * model.chunk_shift + model.chunk_window
    samples = 160 * (feature_frames - 1) + 280  # a feature frame of 400 samples is centred on its 160
    return min(math.ceil(samples / (16000 * PACKET)) * PACKET, seconds)


def test_without_computing_only_the_chunks_are_waited_for(model, utterances):
    decoder = _decoder(model)
    expected = dict(decoder.decode((Source(i, [x]) for i, x in enumerate(utterances)), 10))
    for speakers in (1, 3):
        latency = Simulation(decoder, PACKET, _no_time).run(utterances, speakers)
        assert latency.busy == 0
        assert latency.audio == pytest.approx(sum(LENGTHS) / 16000)
        assert latency.final == pytest.approx([0] * len(LENGTHS), abs=1e-4)
        delays = [
            _shown(model, frame, LENGTHS[i] / 16000) - (frame + 1) * 0.04
            for i, found in expected.items()
            for frame in found.timestamps
        ]
        assert len(delays) > 10
        assert sorted(latency.token_delay) == pytest.approx(sorted(delays), abs=1e-3)
        first = [_shown(model, x.timestamps[0], LENGTHS[i] / 16000) for i, x in expected.items() if x.tokens]
        assert sorted(latency.first_partial) == pytest.approx(sorted(first), abs=1e-3)


def test_computing_is_waited_for(model, utterances):
    ticks = count()
    decoder = _decoder(model, ModifiedBeamSearch)
    fast = Simulation(decoder, PACKET, _no_time).run(utterances, 2)
    slow = Simulation(decoder, PACKET, lambda: 0.005 * next(ticks)).run(utterances, 2)
    assert slow.busy == pytest.approx(0.005 * next(ticks) / 2, rel=0.01)
    assert min(slow.final) >= 0.005 - 1e-9
    assert sum(slow.token_delay) > sum(fast.token_delay)


def test_a_server_that_is_too_slow_falls_behind(model, utterances):
    ticks = count()
    simulation = Simulation(_decoder(model), PACKET, lambda: 1.0 * next(ticks))
    latency = simulation.run(utterances[:1], 1)
    assert latency.as_dict()["real_time_factor"] > 2
    assert latency.final[0] > 1


def test_a_token_that_changes_is_shown_when_it_is_right(monkeypatch, model, utterances):
    decoder = _decoder(model)
    shown = iter([[1, 2], [1, 3]])
    number = count()

    def results(streams):
        return [Hypothesis(next(shown, [1, 3, 4]), [0, 0, 0], float(next(number))) for _ in streams]

    monkeypatch.setattr(decoder, "results", results)
    latency = Simulation(decoder, PACKET, _no_time).run(utterances[:1], 1)
    assert next(number) >= 3
    times = [delay + 0.04 for delay in latency.token_delay]
    assert times[0] == pytest.approx(latency.first_partial[0])
    assert times == sorted(set(times))


def test_table():
    latency = Latency([0.4, 0.5], [0.01], [], busy=1.0, audio=50.0)
    latency.add(Latency([0.6], [], [0.2], busy=1.0, audio=50.0))
    figures = json.loads(json.dumps({"16": latency.as_dict(), "1": Latency([], [], [], 1.0, 2.0).as_dict()}))
    rows = [line.split() for line in format_latency(figures).splitlines()[2:]]
    assert rows == [
        ["16", "0.0200", "500", "/", "590", "10", "/", "10", "200", "/", "200"],
        ["1", "0.5000", *["-", "/", "-"] * 3],
    ]


def test_impossible_options():
    with pytest.raises(ValueError, match="--streams 'many'"):
        LatencyConfig(streams="many")
    with pytest.raises(ValueError, match="--packet"):
        LatencyConfig(packet=0.0)
