"""The Emformer equals torchaudio's, and streaming equals the forward pass."""

import itertools

import pytest
import torch
from gpu import default_device
from optional_packages import import_torchaudio

from icefall_pathways.models.emformer.encoder import CausalConvolution, Emformer
from icefall_pathways.models.emformer.windows import WindowIndex, WindowPlan

pytestmark = pytest.mark.usefixtures("device")

SEGMENT = 4
LENGTHS = (1, 3, 4, 17, 24)

# Memory bank, left context, right context: with and without each, and a left context that splits a segment.
CONTEXTS = list(itertools.product((0, 3), (0, 6, 8), (0, 2)))
contexts = pytest.mark.parametrize(("memory", "left", "right"), CONTEXTS)


def _options(memory, left, right):
    return {
        "input_dim": 16,
        "num_heads": 2,
        "ffn_dim": 24,
        "num_layers": 3,
        "segment_length": SEGMENT,
        "left_context_length": left,
        "right_context_length": right,
        "max_memory_size": memory,
    }


def _encoder_and_reference(options):
    encoder, reference = Emformer(**options).eval(), import_torchaudio().models.Emformer(**options).eval()
    reference.load_state_dict(encoder.state_dict())
    return encoder, reference


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@contexts
@torch.inference_mode()
def test_forward_equals_torchaudio(memory, left, right):
    encoder, reference = _encoder_and_reference(_options(memory, left, right))
    for length in LENGTHS:
        x, lens = torch.randn(2, length + right, 16), torch.full((2,), length)
        _close(encoder(x, lens)[0], reference(x, lens)[0])


@contexts
@torch.inference_mode()
def test_forward_equals_torchaudio_in_a_padded_batch(memory, left, right):
    encoder, reference = _encoder_and_reference(_options(memory, left, right))
    x, lens = torch.randn(3, 22 + right, 16), torch.tensor([22, 8, 16])
    out, expected = encoder(x, lens)[0], reference(x, lens)[0]
    for i, length in enumerate(lens):
        _close(out[i, :length], expected[i, :length])


@pytest.mark.parametrize("options", [{"tanh_on_mem": True}, {"activation": "gelu"}, {"activation": "silu"}])
@torch.inference_mode()
def test_activations_and_tanh_on_mem_equal_torchaudio(options):
    encoder, reference = _encoder_and_reference(_options(3, 8, 2) | options)
    x, lens = torch.randn(2, 22, 16) * 3, torch.full((2,), 20)
    _close(encoder(x, lens)[0], reference(x, lens)[0])


@torch.inference_mode()
def test_memory_is_clamped_as_in_torchaudio():
    encoder, reference = _encoder_and_reference(_options(3, 8, 2))
    for layer in encoder.emformer_layers:
        layer.attention.out_proj.weight.mul_(100)
    reference.load_state_dict(encoder.state_dict())
    x, lens = torch.randn(2, 22, 16), torch.full((2,), 20)
    _close(encoder(x, lens)[0], reference(x, lens)[0])


@pytest.mark.parametrize("strategy", ["depthwise", "constant", None])
def test_initial_projections_have_the_range_of_torchaudio(strategy):
    options = _options(0, 8, 2) | {"input_dim": 128, "weight_init_scale_strategy": strategy}
    reference = import_torchaudio().models.Emformer(**options).state_dict()
    for name, weights in Emformer(**options).state_dict().items():
        if name.endswith(("key_value.weight", "query.weight")):
            torch.testing.assert_close(weights.abs().max(), reference[name].abs().max(), rtol=0.01, atol=0)


@pytest.mark.parametrize(("kernel", "largest"), [(0, 1.0), (5, 0.1)])
def test_initial_branches_are_small_with_a_convolution_module(kernel, largest):
    options = _options(0, 8, 2) | {"input_dim": 64, "ffn_dim": 64, "cnn_module_kernel": kernel}
    layer = Emformer(**options).emformer_layers[0]
    ends = [layer.attention.out_proj, layer.pos_ff[4]] + ([layer.conv_module.pointwise_out] if kernel else [])
    for end in ends:  # torch draws from U(-1 / sqrt(64), 1 / sqrt(64))
        torch.testing.assert_close(end.weight.abs().max().item(), largest / 8, rtol=0.01, atol=0)


def test_unknown_initialization_strategy_is_rejected():
    with pytest.raises(ValueError, match="weight_init_scale_strategy is 'none': expected 'depthwise', 'constant' or"):
        Emformer(**_options(0, 8, 2), weight_init_scale_strategy="none")


def test_dropout_is_disabled_in_eval_mode():
    encoder = Emformer(**_options(3, 8, 2), dropout=0.5, cnn_module_kernel=5)
    x, lens = torch.randn(2, 22, 16), torch.full((2,), 20)
    assert not torch.equal(encoder(x, lens)[0], encoder(x, lens)[0])
    encoder.eval()
    torch.testing.assert_close(encoder(x, lens)[0], encoder(x, lens)[0], rtol=0, atol=0)


def test_convolution_module_equals_torch_layers():
    """For a single window, with zeros before the first frame."""
    module, length, kernel = CausalConvolution(16, 5, dropout=0.0), 9, 5
    index = WindowIndex.make(1, length, length, kernel - 1, True, default_device())
    plan = WindowPlan(length, None, index, index, torch.zeros(1, dtype=torch.bool))
    x = torch.randn(2, length, 16)
    out, past = module(x, torch.zeros(2, kernel - 1, 16), plan)
    gated = torch.nn.functional.glu(module.pointwise_in(module.layer_norm(x)), dim=-1)
    padded = torch.nn.functional.pad(gated.transpose(1, 2), (kernel - 1, 0))
    convolved = torch.nn.functional.silu(module.depthwise(padded)).transpose(1, 2)
    _close(out, module.pointwise_out(convolved))
    _close(past, gated[:, -(kernel - 1) :])


@contexts
@torch.inference_mode()
def test_stream_equals_torchaudio_infer(memory, left, right):
    encoder, reference = _encoder_and_reference(_options(memory, left, right))
    states, reference_states = encoder.get_init_states(2, default_device()), None
    x = torch.randn(2, 10 * SEGMENT + right, 16)
    for start in range(0, 10 * SEGMENT, SEGMENT):
        chunk = x[:, start : start + SEGMENT + right]
        out, _, states = encoder.streaming_forward(chunk, torch.full((2,), SEGMENT), states)
        expected, _, reference_states = reference.infer(chunk, torch.full((2,), SEGMENT + right), reference_states)
        _close(out, expected)


@torch.inference_mode()
def _stream(encoder, x, length):
    """Encode an utterance (1, length + R, D) chunk by chunk."""
    segment, window = encoder.segment_length, encoder.segment_length + encoder.right_context_length
    states, pieces = encoder.get_init_states(1, default_device()), []
    for start in range(0, length, segment):
        chunk = torch.nn.functional.pad(x[:, start : start + window], (0, 0, 0, window), value=9.0)[:, :window]
        lens = torch.tensor([min(segment, length - start)])
        out, lens, states = encoder.streaming_forward(chunk, lens, states)
        pieces.append(out[:, : lens[0]])
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("kernel", [0, 1, 5, 15])
@pytest.mark.parametrize("segment", [1, 4, 7])
@contexts
@torch.inference_mode()
def test_stream_equals_forward(memory, left, right, segment, kernel):
    encoder = Emformer(**_options(memory, left, right) | {"segment_length": segment, "cnn_module_kernel": kernel})
    encoder.eval()
    for length in (2, 18, 21):  # the last chunk is partial for some
        x = torch.randn(1, length + right, 16)
        _close(_stream(encoder, x, length), encoder(x, torch.tensor([length]))[0])


@pytest.mark.parametrize("kernel", [0, 5])
@contexts
@torch.inference_mode()
def test_padding_has_no_effect(memory, left, right, kernel):
    encoder = Emformer(**_options(memory, left, right), cnn_module_kernel=kernel).eval()
    lens = torch.tensor([21, 3, 10, 16])
    x = torch.randn(4, 21 + right, 16)
    out, out_lens = encoder(x, lens)
    assert torch.equal(out_lens, lens)
    for i, length in enumerate(lens):
        alone, _ = encoder(x[i : i + 1, : length + right], lens[i : i + 1])
        _close(out[i, :length], alone[0])


@pytest.mark.parametrize("kernel", [0, 5])
@torch.inference_mode()
def test_streams_started_at_different_times_share_a_batch(kernel):
    """Stream i joins the batch at chunk i; the outputs equal those of single streams."""
    encoder = Emformer(**_options(3, 6, 2), cnn_module_kernel=kernel).eval()
    x = torch.randn(4, 6 * SEGMENT + 2, 16)
    expected = encoder(x, torch.full((4,), 6 * SEGMENT))[0]
    states = [encoder.get_init_states(1, default_device()) for _ in range(4)]
    outputs = [[] for _ in range(4)]
    for chunk in range(6 + 4):
        active = [i for i in range(4) if 0 <= chunk - i < 6]
        if not active:
            continue
        starts = [SEGMENT * (chunk - i) for i in active]
        batch = torch.stack([x[i, start : start + SEGMENT + 2] for i, start in zip(active, starts, strict=True)])
        joined = [torch.cat(tensors) for tensors in zip(*(states[i] for i in active), strict=True)]
        out, _, joined = encoder.streaming_forward(batch, torch.full((len(active),), SEGMENT), joined)
        for row, i in enumerate(active):
            states[i] = [tensor[row : row + 1] for tensor in joined]
            outputs[i].append(out[row])
    for i in range(4):
        _close(torch.cat(outputs[i]), expected[i])


def test_look_ahead_is_the_right_context():
    encoder = Emformer(**_options(3, 6, 2), cnn_module_kernel=5).eval()
    x = torch.randn(1, 26, 16, requires_grad=True)
    encoder(x, torch.tensor([24]))[0][0, 9, 3].backward()  # a frame of the third segment, 8 to 11
    sensitivity = x.grad[0].abs().sum(dim=1)
    assert sensitivity[13] > 0
    assert sensitivity[14:].abs().sum() == 0


@torch.inference_mode()
def test_streaming_does_not_modify_its_input_states():
    encoder = Emformer(**_options(3, 6, 2), cnn_module_kernel=5).eval()
    states = encoder.get_init_states(2, default_device())
    encoder.streaming_forward(torch.randn(2, 6, 16), torch.full((2,), SEGMENT), states)
    assert all(tensor.abs().sum() == 0 for tensor in states)


def test_chunk_of_the_wrong_size_is_rejected():
    encoder = Emformer(**_options(0, 6, 2))
    with pytest.raises(ValueError, match="a chunk has 5 frames: expected 6, which are the segment's 4 and 2 of right"):
        encoder.streaming_forward(
            torch.randn(1, 5, 16), torch.tensor([4]), encoder.get_init_states(1, default_device())
        )


def test_gradients_of_all_parameters_are_finite_with_padding():
    encoder = Emformer(**_options(3, 6, 0), cnn_module_kernel=5)
    lens = torch.tensor([24, 1])
    out, _ = encoder(torch.randn(2, 24, 16), lens)
    (out[0].square().sum() + out[1, :1].square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.startswith("emformer_layers.2"), name
