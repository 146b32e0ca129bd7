"""Zipformer: utterances longer than the maximum context are encoded in blocks, with limited memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.models.zipformer.attention import AttentionWeights

EXACT = {"chunk_size": "8", "left_context_frames": "16"}
APPROXIMATE = {
    "noncausal": {"causal": False},
    "whole utterance": {"chunk_size": "-1", "left_context_frames": "-1"},
    "all frames before the chunk": {"chunk_size": "8", "left_context_frames": "-1"},
}


def make(**options):
    torch.manual_seed(1)
    options = {"cnn_module_kernel": "5", **options}
    model = build_model(ModelConfig(encoder_type="zipformer", zipformer="tiny", **options), 20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn_weights" in name:
                parameter.mul_(4)  # so that the context matters
    return model.eval()


@torch.no_grad()
def encode(model, x, lens, max_context):
    """Return the valid frames of each utterance."""
    model.encoder.max_context = max_context
    out, out_lens = model.encode(x, lens)
    return [row[:length] for row, length in zip(out, out_lens.tolist(), strict=True)]


def features(*lens):
    return torch.randn(len(lens), max(lens), 80), torch.tensor(lens)


@pytest.fixture(scope="module")
def streaming_model():
    return make(**EXACT)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(9, 300), min_size=1, max_size=4), st.integers(1, 320))
def test_blocks_are_exact_with_limited_left_context(streaming_model, lens, max_context):
    x, lens = features(*lens)
    assert streaming_model.encoder.block_encoding == "exact"
    whole = encode(streaming_model, x, lens, None)
    for actual, expected in zip(encode(streaming_model, x, lens, max_context), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", APPROXIMATE.values(), ids=APPROXIMATE)
def test_windows_depend_on_their_context_only(options):
    model = make(**options)
    assert model.encoder.block_encoding == "approximate"
    x, lens = features(400)
    (out,) = encode(model, x, lens, 128)
    assert out.shape[0] == 100
    # Windows advance by 96 frames, with a margin of 16: the second covers frames 80 to 208 for the output of 96 to 192.
    (window,) = encode(model, x[:, 80:208], torch.tensor([128]), None)
    torch.testing.assert_close(out[24:48], window[4:28])
    (last,) = encode(model, x[:, 368:], torch.tensor([32]), None)
    torch.testing.assert_close(out[96:], last[4:])
    (whole,) = encode(model, x, lens, None)
    assert not torch.allclose(out, whole, atol=1e-3)


@pytest.mark.parametrize("options", [EXACT, *APPROXIMATE.values()], ids=["limited", *APPROXIMATE])
def test_utterances_within_the_limit_are_encoded_at_once(options):
    model = make(**options)
    x, lens = features(300, 90, 128, 64)
    for i, (actual, expected) in enumerate(zip(encode(model, x, lens, 128), encode(model, x, lens, None), strict=True)):
        if i > 0:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    x, lens = features(128, 100)
    for actual, expected in zip(encode(model, x, lens, 128), encode(model, x, lens, None), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("options", [EXACT, *APPROXIMATE.values()], ids=["limited", *APPROXIMATE])
def test_attention_does_not_grow_with_the_duration(options, monkeypatch):
    sizes = []
    forward = AttentionWeights.forward

    def record(self, *args):
        weights, key = forward(self, *args)
        sizes.append(weights.numel())
        return weights, key

    monkeypatch.setattr(AttentionWeights, "forward", record)
    model = make(**options)
    largest = []
    for seconds in (4, 8):
        sizes.clear()
        encode(model, *features(seconds * 100), 128)
        largest.append(max(sizes))
    assert largest[0] == largest[1]


def test_training_is_not_limited():
    model = make(causal=False).train()
    model.encoder.max_context = 64
    windows = []
    model.encoder._encode_windows = lambda *_: windows.append(1)
    model.encode(*features(200))
    assert not windows
