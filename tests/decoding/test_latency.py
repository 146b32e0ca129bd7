"""Latency benchmark, with clocks that simulate the computation time."""

import json
import math
from functools import partial
from itertools import count

import pytest
import torch
from search_cases import ScriptedSearch

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.latency import Latency, LatencyConfig, Simulation, format_latency
from icefall_pathways.decoding.streaming import FRAME_SECONDS, Source, StreamingDecoder
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


def _stopped_clock():
    return 0.0


def _earliest_time(model, frame, seconds):
    """Return the time at which the chunk of an encoder frame, or else the whole audio, has arrived."""
    chunk = frame // (model.chunk_shift // SUBSAMPLING_FACTOR)
    feature_frames = chunk * model.chunk_shift + model.chunk_window
    samples = 160 * (feature_frames - 1) + 280  # the window of 400 samples is centered on the 160 of the shift
    return min(math.ceil(samples / (16000 * PACKET)) * PACKET, seconds)


def test_latency_without_computation_equals_the_wait_for_chunks(model, utterances):
    decoder = _decoder(model)
    expected = dict(decoder.decode((Source(i, [x]) for i, x in enumerate(utterances)), 10))
    for num_streams in (1, 3):
        latency = Simulation(decoder, PACKET, _stopped_clock).run(utterances, num_streams)
        assert latency.compute == 0
        assert latency.audio == pytest.approx(sum(LENGTHS) / 16000)
        assert latency.final == pytest.approx([0] * len(LENGTHS), abs=1e-4)
        delays = [
            _earliest_time(model, frame, LENGTHS[i] / 16000) - (frame + 1) * FRAME_SECONDS
            for i, hypothesis in expected.items()
            for frame in hypothesis.timestamps
        ]
        assert len(delays) > 10
        assert sorted(latency.token_delay) == pytest.approx(sorted(delays), abs=1e-3)
        first = [_earliest_time(model, x.timestamps[0], LENGTHS[i] / 16000) for i, x in expected.items() if x.tokens]
        assert sorted(latency.first_partial) == pytest.approx(sorted(first), abs=1e-3)


def test_latency_includes_computation(model, utterances):
    ticks = count()
    decoder = _decoder(model, ModifiedBeamSearch)
    fast = Simulation(decoder, PACKET, _stopped_clock).run(utterances, 2)
    slow = Simulation(decoder, PACKET, lambda: 0.005 * next(ticks)).run(utterances, 2)
    assert slow.compute == pytest.approx(0.005 * next(ticks) / 2, rel=0.01)
    assert min(slow.final) >= 0.005 - 1e-9
    assert sum(slow.token_delay) > sum(fast.token_delay)


def test_latency_accumulates_if_computation_is_slower_than_real_time(model, utterances):
    ticks = count()
    simulation = Simulation(_decoder(model), PACKET, lambda: 1.0 * next(ticks))
    latency = simulation.run(utterances[:1], 1)
    assert latency.as_dict()["real_time_factor"] > 2
    assert latency.final[0] > 1


def test_token_delay_counts_from_the_last_revision(model, utterances):
    frames_per_chunk = model.chunk_shift // SUBSAMPLING_FACTOR

    def script(num_frames):
        tokens = {1: [1, 2], 2: [1, 3]}.get(math.ceil(num_frames / frames_per_chunk), [1, 3, 4])
        return Hypothesis(tokens, [0] * len(tokens), 0.0)

    decoder = _decoder(model, partial(ScriptedSearch, script=script))
    latency = Simulation(decoder, PACKET, _stopped_clock).run(utterances[:1], 1)
    times = [delay + FRAME_SECONDS for delay in latency.token_delay]
    assert len(times) == 3
    assert times[0] == pytest.approx(latency.first_partial[0])
    assert times == sorted(set(times))


def test_table_has_percentiles_in_milliseconds():
    latency = Latency([0.4, 0.5], [0.01], [], compute=1.0, audio=50.0)
    latency.add(Latency([0.6], [], [0.2], compute=1.0, audio=50.0))
    figures = json.loads(json.dumps({"16": latency.as_dict(), "1": Latency([], [], [], 1.0, 2.0).as_dict()}))
    rows = [line.split() for line in format_latency(figures).splitlines()[2:]]
    assert rows == [
        ["16", "0.0200", "500", "/", "590", "10", "/", "10", "200", "/", "200"],
        ["1", "0.5000", *["-", "/", "-"] * 3],
    ]


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="--streams is 'many'"):
        LatencyConfig(streams="many")
    with pytest.raises(ValueError, match="--packet"):
        LatencyConfig(packet=0.0)
