"""Counts of multiply-adds: by hand, and by torch's own counter, which the reference stack lacks."""

from collections import Counter
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from stream_models import MODELS, SMALL, make_model
from torch import nn

from icefall_pathways.models import multiply_adds
from icefall_pathways.models.multiply_adds import (
    ACTIVATIONS,
    count_multiply_adds,
    decoding_per_second,
    forward_per_second,
)
from icefall_pathways.pathways.masks import PathwayMasks

# Multiply-adds of torch.utils.flop_counter.FlopCounterMode, torch 2.13: a training forward pass of 10 s; a chunk.
COUNTED_BY_TORCH = {
    "emformer": (3_186_678, 53_046),
    "emformer-memory": (4_053_558, 66_806),
    "emformer-no-look-ahead": (2_678_734, 37_134),
    "emformer-ctc": (3_266_678, 53_046),
    "zipformer": (1_514_501_584, 48_771_712),
}


@pytest.mark.parametrize(
    ("layer", "shape", "count"),
    [
        (nn.Linear(3, 5), (2, 7, 3), 2 * 7 * 3 * 5),
        (nn.Linear(3, 5, bias=False), (3,), 3 * 5),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 8 * 6 * 4 * 3),
        (nn.Conv1d(6, 6, 3, groups=6, padding=1), (2, 6, 10), 2 * 10 * 6 * 3),
        (nn.Conv2d(2, 4, 3, stride=2), (1, 2, 9, 7), 4 * 3 * 4 * 2 * 9),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 10), 2 * 10 * 4 * 6 * 3),
    ],
)
def test_a_layer_takes_one_multiply_add_per_weight_and_position(layer, shape, count):
    assert count_multiply_adds(layer, lambda: layer(torch.rand(shape))) == {"weight": count}


def test_weights_applied_by_functions_count_for_their_parameter():
    model = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(6, 2)})

    def run():
        hidden = torch.mm(torch.rand(5, 4), model["a"].weight.t().contiguous())
        grouped = model["b"].weight.unflatten(1, (2, 3)).transpose(0, 1)
        torch.einsum("tgi,goi->tgo", hidden.unflatten(1, (2, 3)), grouped)
        F.linear(hidden, torch.rand(3, 6))

    assert count_multiply_adds(model, run) == {"a.weight": 5 * 4 * 6, "b.weight": 5 * 12, ACTIVATIONS: 5 * 3 * 6}


@pytest.mark.parametrize("kind", MODELS)
def test_counts_equal_those_of_torch(kind, monkeypatch):
    counted = []

    def compare(model, run):
        count = count_multiply_adds(model, run)
        if find_spec("torch.utils.flop_counter"):
            with torch.no_grad(), import_module("torch.utils.flop_counter").FlopCounterMode(display=False) as counter:
                run()
            assert counter.get_total_flops() == 2 * count.total()
        counted.append(count.total())
        return count

    monkeypatch.setattr(multiply_adds, "count_multiply_adds", compare)
    model = make_model(kind)
    forward_per_second(model)
    decoding_per_second(model, num_hypotheses=4)
    assert tuple(counted[:2]) == COUNTED_BY_TORCH[kind]


@pytest.mark.parametrize("kind", MODELS)
def test_every_prunable_weight_counts(kind):
    model = make_model(kind)
    names = PathwayMasks.dense(model, ["en"], ["encoder_embed", "encoder", "decoder"]).names
    for counts in (forward_per_second(model), decoding_per_second(model), decoding_per_second(model, streaming=False)):
        assert not [name for name in names if not counts[name]]


def test_attention_counts_its_context():
    """Each layer multiplies 6 queries by 4 + 6 keys, and as many weights by values, per chunk of 160 ms."""
    counts = decoding_per_second(make_model("emformer"))
    assert counts[ACTIVATIONS] == 2 * 2 * 6 * 10 * SMALL["encoder_dim"] / 0.16


def test_the_joiner_counts_per_frame_and_the_predictor_per_token_of_each_hypothesis():
    model = make_model("emformer")
    difference = Counter(decoding_per_second(model, num_hypotheses=3))
    difference.subtract(decoding_per_second(model))
    tokens = 4
    assert {name: count for name, count in difference.items() if count} == {
        "joiner.output_linear.weight": 2 * 25 * 16 * 20,
        "joiner.decoder_proj.weight": 2 * tokens * 16 * 16,
        "decoder.conv.weight": 2 * tokens * 16 * 4 * 2,
    }
