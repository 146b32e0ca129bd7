"""The Zipformer equals icefall's."""

import pytest
import torch
from gpu import default_device
from public_numbers import parameter_shapes

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.losses import boundaries, pruned_loss, simple_loss
from icefall_pathways.models.transducer import build_model
from icefall_pathways.models.zipformer.attention_plan import positional_encoding

pytestmark = pytest.mark.usefixtures("device")

ROWS = "encoder.encoders.0.layers.0.self_attn_weights.rows_0_17_40"


def _close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=0)


def _compare_inner_outputs(reference, captured, embedded, step):
    """Compare the outputs of submodules with the fixture, which contains every `step`-th frame."""
    inner = reference.numbers["inner"]
    names = [name for name in inner if name not in ("run", ROWS) and not name.endswith("encoder_pos")]
    attention = ROWS.rpartition(".")[0]
    outputs = captured(reference.model, [*names, attention])
    reference.encode(embedded, inner["run"])
    assert len(names) >= 12
    for name in names:
        _close(outputs[name].transpose(0, 1)[::step], inner[name])
    _close(outputs[attention][-1, :, [0, 17, 40]], inner[ROWS])


@torch.no_grad()
def test_subsampling_equals_icefall(reference):
    _close(reference.embed(reference.numbers["x"])[:, ::2], reference.numbers["embed_out"])


@torch.no_grad()
def test_encoder_equals_icefall(reference):
    embedded = reference.embed(reference.numbers["x"])
    assert len(reference.numbers["runs"]) == 4
    for run, numbers in reference.numbers["runs"].items():
        out, lens = reference.encode(embedded, run)
        assert torch.equal(lens, numbers["out_lens"])
        _close(out[:, ::2], numbers["out"])


@torch.no_grad()
def test_encoder_equals_icefall_in_float64(exact_reference):
    embedded = exact_reference.embed(exact_reference.numbers["x"].double())
    _close(embedded[:, ::2], exact_reference.numbers["embed_out"], 1e-9)
    for run, numbers in exact_reference.numbers["runs"].items():
        _close(exact_reference.encode(embedded, run)[0][:, ::2], numbers["out"], 1e-6)


@torch.no_grad()
def test_outputs_of_submodules_equal_icefall(reference, captured):
    _compare_inner_outputs(reference, captured, reference.embed(reference.numbers["x"]), step=8)


@torch.no_grad()
def test_outputs_of_a_noncausal_layer_equal_icefall(noncausal_layer, captured):
    _compare_inner_outputs(noncausal_layer, captured, noncausal_layer.numbers["embed_out"], step=4)


def test_positional_encoding_equals_icefall(reference, noncausal_layer):
    for numbers in (reference.numbers, noncausal_layer.numbers):
        expected = numbers["inner"]["encoder.encoders.0.encoder_pos"][0]
        code = positional_encoding(0, (len(expected) + 1) // 2, expected.size(1), expected.device)
        _close(code[:-1], expected, 1e-5)


def test_gradients_equal_icefall(exact_reference):
    model, expected = exact_reference.model, exact_reference.numbers["grad"]
    model.zero_grad()
    out, _ = exact_reference.encode(
        exact_reference.embed(exact_reference.numbers["x"].double()), exact_reference.numbers["inner"]["run"]
    )
    value = (out * expected["G"]).sum()
    value.backward()
    assert value.item() == pytest.approx(expected["value"], abs=1e-5)
    with_gradient = {name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None}
    assert set(with_gradient) == set(expected["norm_and_dot"])
    assert {name for name, p in model.named_parameters() if p.grad is None} == set(expected["no_grad"])
    for name, gradient in with_gradient.items():
        norm, dot = expected["norm_and_dot"][name].tolist()
        waves = torch.cos(0.7 * torch.arange(gradient.numel(), dtype=torch.float64))
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-5), name
        assert (gradient * waves).sum().item() == pytest.approx(dot, abs=1e-5 * norm), name


@torch.no_grad()
def test_streaming_equals_icefall(reference):
    numbers, model = reference.numbers["stream"], reference.model
    model.encoder.set_context(numbers["chunk"], numbers["left"])
    assert model.chunk_window == 45
    states = model.init_states(2, default_device())
    assert [list(state.shape) for state in states] == numbers["init_shapes"]
    assert not any(state.any() for state in states)
    for step, expected in enumerate(numbers["out"]):
        x = numbers["feats"][:, 32 * step : 32 * step + 45]
        out, lens, states = model.stream(x, torch.tensor([45, 45]), states)
        _close(out, expected)
        assert lens.tolist() == [8, 8]


def _advanced(cache, added):
    """Drop the oldest frames of `cache` and append the frames `added`; return `added` if there is no frame axis."""
    axes = [axis for axis in range(cache.ndim) if cache.size(axis) != added.size(axis)]
    if not axes:
        return added
    (axis,) = axes
    kept = cache.size(axis) - added.size(axis)
    return torch.cat([cache.narrow(axis, added.size(axis), kept), added], dim=axis)


@torch.no_grad()
def test_streaming_from_random_states_equals_icefall(reference):
    """Streams of different lengths, one of which ends in this chunk: icefall ends it before the look-ahead."""
    numbers, model = reference.numbers["stream_random_state"], reference.model
    *caches, embed_state, processed_lens = numbers["states_in"]
    embedded, embed_state = model.encoder_embed.streaming_forward(numbers["x"], embed_state)
    lens = torch.div(numbers["x_lens"] - 7, 2, rounding_mode="floor") - 3
    out, out_lens, (*caches, processed_lens) = model.encoder.streaming_forward(
        embedded, lens, [*caches, processed_lens], left_context_frames=64
    )
    _close(out, numbers["out"])
    assert torch.equal(out_lens, numbers["out_lens"])
    states_out = [*caches, embed_state, processed_lens]
    for state, before, expected in zip(states_out, numbers["states_in"], numbers["states_out"], strict=True):
        _close(state, _advanced(before, expected))


@torch.no_grad()
def test_predictor_and_joiner_equal_icefall(reference):
    head, model = reference.numbers["head"], reference.model
    decoder_out = model.decoder(head["y"])
    _close(decoder_out, head["decoder_out"])
    _close(model.decoder(head["ctx"], need_pad=False), head["decoder_out_ctx"])
    _close(model.joiner(head["enc"].unsqueeze(2), decoder_out.unsqueeze(1)), head["joiner_out"])
    _close(model.joiner.encoder_proj(head["enc"]), head["encoder_proj"])
    _close(model.joiner.decoder_proj(decoder_out), head["decoder_proj"])
    _close(model.simple_am_proj(head["enc"]), head["simple_am"])
    _close(model.simple_lm_proj(decoder_out), head["simple_lm"])


@pytest.mark.parametrize("case", ["default", "am_scaled", "plain"])
def test_losses_equal_icefall(reference, case):
    """The pruning ranges are those of the reference, because some depend on rounding in float32."""
    model, loss = reference.model, reference.numbers["loss"]
    numbers = loss[case]
    model.zero_grad()
    encoder_out = loss["encoder_out"].clone().requires_grad_()
    y = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in loss["y"]], batch_first=True)
    boundary = boundaries(loss["enc_lens"], torch.tensor([len(tokens) for tokens in loss["y"]]))
    decoder_out = model.decoder(torch.nn.functional.pad(y, (1, 0)))
    am, lm = model.simple_am_proj(encoder_out), model.simple_lm_proj(decoder_out)
    scales = numbers["am_scale"], numbers["lm_scale"]
    simple, _ = simple_loss(am, lm, y, boundary, numbers["prune_range"], *scales)
    am, lm = model.joiner.encoder_proj(encoder_out), model.joiner.decoder_proj(decoder_out)
    pruned = pruned_loss(lambda a, b: model.joiner(a, b, project_input=False), am, lm, y, numbers["ranges"], boundary)
    assert simple.item() == pytest.approx(numbers["simple_loss"], rel=1e-5)
    assert pruned.item() == pytest.approx(numbers["pruned_loss"], rel=1e-5)
    (0.5 * simple + pruned).backward()
    _close(encoder_out.grad, numbers["enc_grad_of_half_simple_plus_pruned"])
    for name, expected in numbers.get("param_grads", {}).items():
        _close(model.get_parameter(name).grad, expected, 1e-3)


@pytest.mark.parametrize(("name", "num_parameters"), [("default", 66_110_931), ("small", 575_599)])
def test_parameter_names_and_shapes_equal_icefall(name, num_parameters, reference):
    model = build_model(ModelConfig(encoder_type="zipformer"), 500) if name == "default" else reference.model
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == parameter_shapes(name)
