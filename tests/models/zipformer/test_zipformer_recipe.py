"""Sizes, initialization, training settings and prunable parameters of the Zipformer, as in icefall's recipe."""

import math
import re

import pytest
import torch
from drawn_masks import random_masks
from gpu import default_device

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.regularizers import Balancer, Schedule, Whiten, set_position
from icefall_pathways.models.transducer import build_model
from icefall_pathways.models.zipformer.config import UNLIMITED
from icefall_pathways.models.zipformer.encoder import feature_mask, layer_skip_rates
from icefall_pathways.pathways.activation import activate
from icefall_pathways.pathways.masks import prunable_parameters

pytestmark = pytest.mark.usefixtures("device")

LANGUAGES = ("en", "fr")


def make(size="tiny", vocab_size=20, **options):
    return build_model(ModelConfig(encoder_type="zipformer", zipformer=size, **options), vocab_size)


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 5_255_905), ("medium", 19_728_623), ("default", 66_110_931)]
)
def test_parameter_counts_of_named_sizes_equal_icefall(size, parameters):
    assert sum(parameter.numel() for parameter in make(size, 500).parameters()) == parameters


@pytest.mark.parametrize(("size", "parameters"), [("micro", 470_651), ("mini", 2_584_309)])
def test_parameter_counts_of_sizes_for_small_corpora(size, parameters):
    model = make(size, 100, ctc_head=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_front_end_channels_set_the_shapes_of_the_subsampling():
    """Parameter names are icefall's; the ConvNeXt block has three hidden channels per channel."""
    model = make("micro", front_end_channels="4,6,8")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.encoder_embed.named_parameters()}
    assert shapes.keys() == dict(make("small").encoder_embed.named_parameters()).keys()
    assert [shapes[f"conv.{i}.weight"][:2] for i in (0, 4, 7)] == [(4, 1), (6, 4), (8, 6)]
    assert shapes["convnext.pointwise_conv1.weight"] == (24, 8, 1, 1) and shapes["out.weight"] == (48, 8 * 19)
    with pytest.raises(ValueError, match="front_end_channels is 4,6: expected three positive numbers"):
        make("micro", front_end_channels="4,6")


def generic_name(name):
    """Return a parameter's name without the indices of its stack and layer."""
    return re.sub(r"^encoder\.encoders\.\d+\.(encoder\.)?layers\.\d+\.", "layer.", name)


@pytest.mark.parametrize("causal", [True, False])
def test_only_weights_of_linear_and_convolution_layers_are_prunable(causal):
    """Gates, norms, positional projections, embeddings and output layers are not prunable."""
    masked, modules = {"layer.self_attn_weights.in_proj"}, ("in_proj", "out_proj")
    masked |= {f"layer.{module}.{part}" for module in ("self_attn1", "self_attn2") for part in modules}
    masked |= {f"layer.feed_forward{i}.{part}" for i in (1, 2, 3) for part in modules}
    masked |= {f"layer.nonlin_attention.{part}" for part in modules}
    masked |= {f"layer.conv_module{i}.{part}" for i in (1, 2) for part in modules}
    kernels = ("depthwise_conv.causal_conv", "depthwise_conv.chunkwise_conv") if causal else ("depthwise_conv",)
    masked |= {f"layer.conv_module{i}.{kernel}" for i in (1, 2) for kernel in kernels}
    subsampling = ("conv.0", "conv.4", "conv.7", "convnext.depthwise_conv", "out")
    masked |= {
        f"encoder_embed.{part}" for part in (*subsampling, "convnext.pointwise_conv1", "convnext.pointwise_conv2")
    }
    masked.add("decoder.conv")
    model = make(causal=causal)
    actual = {generic_name(name) for name in prunable_parameters(model, ["encoder_embed", "encoder", "decoder"])}
    assert actual == {f"{name}.weight" for name in masked}
    others = {
        generic_name(name)
        for name, _ in model.named_parameters()
        if generic_name(name) not in actual and "bias" not in name
    }
    assert "layer.self_attn_weights.linear_pos.weight" in others and "layer.bypass_scale" in others
    assert ("layer.conv_module1.depthwise_conv.chunkwise_conv_scale" in others) == causal


@torch.no_grad()
def test_entries_outside_the_mask_have_no_effect():
    """In whole utterances and in chunks; entries inside the mask of every parameter have an effect."""
    model = make(chunk_size="16", left_context_frames="32").eval()
    masks = random_masks(model, LANGUAGES, ["encoder_embed", "encoder"])
    x, lens = torch.randn(1, 45, 80), torch.tensor([45])
    states = [
        torch.randn_like(state) if state.is_floating_point() else state + 20
        for state in model.init_states(1, default_device())
    ]

    def stream():
        with activate(model, masks, "en"):
            return model.stream(x, lens, states)[0]

    def encode():
        with activate(model, masks, "en"):
            return model.encode(x, lens)[0]

    whole, chunk = encode(), stream()
    for name in masks.names:
        parameter, inside = model.get_parameter(name), masks.mask(name, "en")
        parameter.masked_fill_(~inside, 9.0)
        kept = parameter.clone()
        parameter.add_(inside * 0.5)
        assert not torch.allclose(stream(), chunk, atol=1e-5, rtol=0), name
        parameter.copy_(kept)
    # Not bit for bit: on some CPUs sums depend on where tensors lie in memory.
    torch.testing.assert_close(encode(), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(stream(), chunk, atol=1e-5, rtol=0)


def test_gradients_outside_the_mask_are_zero_in_training():
    """All regularizers that modify gradients are active."""
    model = make().train()
    set_position(model, 1e5)  # where few layers are skipped
    masks = random_masks(model, LANGUAGES, ["encoder_embed", "encoder"])
    y, y_lens = torch.randint(3, 20, (4, 4)), torch.tensor([4, 3, 2, 1])
    with activate(model, masks, "en"):
        losses = model(torch.randn(4, 60, 80), torch.tensor([60, 50, 40, 30]), y, y_lens)
    (losses.simple + losses.pruned).backward()
    for name in masks.names:
        gradient, inside = model.get_parameter(name).grad, masks.mask(name, "en")
        assert (gradient[~inside] == 0).all() and gradient[inside].any(), name


def value(scheduled):
    return tuple(scheduled.points) if isinstance(scheduled, Schedule) else scheduled


DEFAULT = ((0, 0.5), (8000, 0.125))
BALANCERS = {
    "encoder_embed.balancers.0": (0.05, 0.95, 0.2, 1.0, DEFAULT),
    "encoder_embed.balancers.1": (0.05, 0.95, 0.2, 4.0, DEFAULT),
    "encoder_embed.balancers.2": (0.05, 0.95, 0.2, 4.0, DEFAULT),
    "encoder_embed.convnext.hidden_balancer": (0.3, 1.0, 0.75, 5.0, DEFAULT),
    "encoder_embed.convnext.out_balancer": (0.4, 0.6, 1.0, 6.0, DEFAULT),
    "layer.self_attn_weights.balance_keys": (0.4, 0.6, 0.0, 100.0, 0.025),
    "layer.nonlin_attention.balancer": (
        ((0, 0.25), (20000, 0.05)),
        ((0, 0.75), (20000, 0.95)),
        0.5,
        5.0,
        DEFAULT,
    ),
    "layer.balancer_na": (0.3, 0.7, ((0, 0.004), (4000, 0.02)), 100.0, 0.05),
    "layer.balancer_ff2": (0.3, 0.7, ((0, 0.0), (4000, 0.1)), 2.0, 0.05),
    "layer.balancer_ff3": (0.3, 0.7, ((0, 0.0), (4000, 0.2)), 4.0, 0.05),
    "layer.balancer1": (0.45, 0.55, 0.2, 4.0, DEFAULT),
    "layer.balancer2": (0.45, 0.55, 0.1, 4.0, DEFAULT),
    "decoder.embedding_balancer": (0.0, 1.0, 0.5, 1.0, 0.05),
    "decoder.out_balancer": (0.0, 1.0, 0.5, 1.0, 0.05),
    **{f"layer.feed_forward{i}.hidden_balancer": (0.3, 1.0, 0.75, 5.0, DEFAULT) for i in (1, 2, 3)},
    **{
        f"layer.conv_module{i}.gate_balancer": (
            ((0, 0.05), (8000, 0.025)),
            1.0,
            1.5,
            ((0, 5.0), (8000, 10.0)),
            DEFAULT,
        )
        for i in (1, 2)
    },
    **{
        f"layer.conv_module{i}.balancer": (
            ((0, 0.1), (8000, 0.05)),
            1.0,
            ((0, 0.2), (20000, 0.5)),
            10.0,
            DEFAULT,
        )
        for i in (1, 2)
    },
}


def increasing(start, end):
    return ((0, start), (20000, end))


WHITENERS = {
    "encoder_embed.convnext.out_whiten": (1, 5.0, 0.01),
    "encoder_embed.out_whiten": (1, increasing(4.0, 8.0), 0.02),
    "layer.self_attn_weights.whiten_keys": (4, increasing(3.0, 6.0), 0.025),
    "layer.self_attn1.whiten": (1, increasing(7.5, 22.5), 0.01),
    "layer.self_attn2.whiten": (1, increasing(7.5, 22.5), 0.01),
    "layer.nonlin_attention.whiten1": (1, increasing(5.0, 10.0), 0.01),
    "layer.nonlin_attention.whiten2": (1, increasing(5.0, 15.0), 0.01),
    "layer.whiten": (1, increasing(4.0, 12.0), 0.01),
    **{f"layer.feed_forward{i}.out_whiten": (1, increasing(7.5, 15.0), 0.01) for i in (1, 2, 3)},
    **{f"layer.conv_module{i}.whiten": (1, increasing(7.5, 15.0), 0.01) for i in (1, 2)},
}


def test_settings_of_balancers_and_whiteners_equal_icefall():
    model = make()
    actual = {
        generic_name(name): tuple(map(value, (*module.positive, *module.abs, module.probability)))
        for name, module in model.named_modules()
        if isinstance(module, Balancer)
    }
    assert actual == BALANCERS
    actual = {
        generic_name(name): (module.num_groups, value(module.limit), module.grad_scale)
        for name, module in model.named_modules()
        if isinstance(module, Whiten)
    }
    assert actual == WHITENERS


def test_predictor_of_the_emformer_has_no_balancers():
    model = build_model(ModelConfig(num_encoder_layers=1, encoder_dim=16, nhead=2), 20)
    assert not any(isinstance(module, Balancer) for module in model.modules())


def test_layer_skip_rates_decrease_layer_by_layer():
    """With six stacks: in 4000 / 7 batches per stack, from 0.5 to 0.035 times the root of the downsampling factor."""
    config = ModelConfig(encoder_type="zipformer").architecture.encoder
    first, second, third = layer_skip_rates(config, 2)
    start, step = 4000 * 3 / 7, 4000 / 7 / 3
    for i, schedule in enumerate((first, second, third)):
        assert schedule(0) == schedule(start + i * step) == 0.5
        assert schedule(start + (i + 0.5) * step) == pytest.approx((0.5 + 0.07) / 2)
        assert schedule(start + (i + 1) * step) == pytest.approx(0.07)
        assert schedule(1e9) == pytest.approx(0.07)


def test_feature_mask_zeroes_halves_of_the_maskable_channels():
    first, second = torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1), torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    mask = feature_mask((first, second), dim=9, unmasked=4).squeeze(1)
    assert mask.tolist() == [[1.0] * 9, [1.0] * 6 + [0.0] * 3, [1.0] * 4 + [0.0] * 5]


def test_training_samples_chunk_sizes_and_left_contexts():
    encoder = make().train().encoder
    drawn = [encoder.sample_context() for _ in range(2000)]
    chunks = {chunk: [left for c, left in drawn if c == chunk] for chunk in (16, 32, 64, UNLIMITED)}
    assert sum(map(len, chunks.values())) == 2000 and all(400 < len(lefts) < 600 for lefts in chunks.values())
    for chunk, lefts in chunks.items():
        assert set(lefts) == ({UNLIMITED} if chunk == UNLIMITED else {64, 128, 256, UNLIMITED})
    assert {encoder.eval().sample_context() for _ in range(20)} == {(16, 64)}


def test_random_numbers_are_drawn_only_in_training(device):
    """Even without gradients, and late in training."""
    get_rng_state = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state
    model = make().eval()
    x, lens = torch.randn(2, 60, 80), torch.tensor([60, 50])
    state = get_rng_state()
    model.encode(x, lens)
    assert torch.equal(state, get_rng_state())
    model.train()
    set_position(model, 1e9)
    model.encode(x, lens)
    assert not torch.equal(state, get_rng_state())


def test_initial_weights_have_the_ranges_of_icefall():
    """Weights are uniform within s / sqrt(fan-in), biases within 0.1 s, or torch's range if s is 1."""
    scales = {"self_attn_weights.in_proj": 32**-0.25, "self_attn_weights.linear_pos": 0.05}
    scales |= {f"{module}.out_proj": 0.05 for module in ("self_attn1", "nonlin_attention", "conv_module2")}
    scales |= {"feed_forward1.out_proj": 0.1, "feed_forward3.in_proj": 1.0, "conv_module1.in_proj": 1.0}
    model = make("mini")
    layer = model.encoder.encoders[3].encoder.layers[0]
    checked = [(layer.get_submodule(name), scale) for name, scale in scales.items()]
    checked += [
        (model.get_submodule(f"encoder_embed.convnext.{name}"), s)
        for name, s in (("pointwise_conv1", 1.0), ("pointwise_conv2", 0.01))
    ]
    checked += [
        (model.get_submodule(name), 0.25)
        for name in ("joiner.encoder_proj", "joiner.decoder_proj", "simple_am_proj", "simple_lm_proj")
    ]
    for module, scale in checked:
        bound = scale / math.sqrt(module.weight[0].numel())
        assert 0.9 * bound < float(module.weight.abs().max()) <= bound * 1.0001, module
        if module.bias is not None:
            bound = 0.1 * scale if scale != 1.0 else bound
            assert 0.5 * bound < float(module.bias.abs().max()) <= bound * 1.0001, module
    convolution = layer.conv_module1.depthwise_conv
    assert 0.05 < float(convolution.causal_conv.bias.abs().max()) <= 0.1
    assert not convolution.chunkwise_conv_scale.any() and not model.encoder.downsample_output.bias.any()
    assert all((scale == 0.5).all() for name, scale in model.named_parameters() if name.endswith("bypass_scale"))
    assert float(layer.norm.log_scale) == 1 and 0 < float(layer.norm.bias.abs().max()) < 1e-3
