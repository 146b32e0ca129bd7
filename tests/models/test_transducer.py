import math

import pytest
import torch
from gpu import default_device

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model

pytestmark = pytest.mark.usefixtures("device")


def _config(**options):
    if options.get("encoder_type") == "zipformer":
        return ModelConfig(**options)
    sizes = {
        "num_encoder_layers": 2,
        "encoder_dim": 16,
        "nhead": 2,
        "dim_feedforward": 24,
        "subsampling_channels": "4,8",
        "decoder_dim": 16,
        "joiner_dim": 16,
        "dropout": 0.0,
    }
    return ModelConfig(**(sizes | options))


def _batch():
    x, x_lens = torch.randn(3, 100, 80) * 2 - 8, torch.tensor([100, 37, 64])
    y, y_lens = torch.randint(3, 20, (3, 5)), torch.tensor([5, 2, 0])
    return x, x_lens, y * (torch.arange(5) < y_lens[:, None]), y_lens


OPTIONS = [
    {},
    {"cnn_module_kernel": 5},
    {"memory_size": 3, "cnn_module_kernel": 15, "left_context_length": 40},
    {"right_context_length": 0, "memory_size": 2},
    {"segment_length": 16, "left_context_length": 0},
]
ZIPFORMER = {"encoder_type": "zipformer", "zipformer": "tiny", "decoder_dim": 16, "joiner_dim": 16}
DEEP = {
    "num_encoder_layers": "1,2,1,1",
    "downsampling_factor": "1,4,8,2",
    "encoder_dim": "16,24,16,32",
    "encoder_unmasked_dim": "16",
    "feedforward_dim": "16",
    "num_heads": "4,2,4,4",
    "query_head_dim": "4",
    "cnn_module_kernel": "31,7,7,15",
}
ZIPFORMERS = [
    ZIPFORMER,
    ZIPFORMER | {"chunk_size": "32", "left_context_frames": "32"},
    ZIPFORMER | DEEP | {"chunk_size": "8", "left_context_frames": "32"},
]


def _chunks(model, x):
    """Yield the chunks of an utterance (T, 80) and their numbers of valid frames; padding is garbage."""
    for start in range(0, x.size(0), model.chunk_shift):
        chunk = x[start : start + model.chunk_window]
        window = torch.full((model.chunk_window, 80), 5.0)
        window[: chunk.size(0)] = chunk
        yield window, chunk.size(0)


@pytest.mark.parametrize("options", OPTIONS + ZIPFORMERS)
@torch.inference_mode()
def test_streams_started_at_different_times_equal_encode(options):
    """Streams join the batch one by one and leave it when they end; `encode` receives the padded batch."""
    model = build_model(_config(**options), 20).eval()
    lengths = torch.tensor([131, 7, 64, 33, 99, 1])
    x = torch.randn(6, 131, 80) * 2 - 8
    expected, lens = model.encode(x, lengths)
    assert torch.equal(lens, torch.tensor([math.ceil(length / 4) for length in lengths]))
    assert expected.size(1) == 33

    waiting = [(i, _chunks(model, x[i, : lengths[i]])) for i in range(6)]
    active, states, outputs = [], {}, {i: [] for i in range(6)}
    while waiting or active:
        if waiting:
            active.append(waiting.pop(0))
            states[active[-1][0]] = model.init_states(1, default_device())
        pieces = [(i, chunks, *piece) for i, chunks in active if (piece := next(chunks, None))]
        active = [(i, chunks) for i, chunks, _, _ in pieces]
        if not pieces:
            continue
        windows, sizes = torch.stack([piece[2] for piece in pieces]), torch.tensor([piece[3] for piece in pieces])
        out, out_lens, joined = model.stream(windows, sizes, model.stack_states([states[i] for i, _ in active]))
        for row, state in enumerate(model.unstack_states(joined)):
            states[active[row][0]] = state
            outputs[active[row][0]].append(out[row, : out_lens[row]])
    for i in range(6):
        torch.testing.assert_close(torch.cat(outputs[i]), expected[i, : lens[i]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", OPTIONS + ZIPFORMERS)
@torch.inference_mode()
def test_padding_does_not_affect_encode(options):
    model = build_model(_config(**options), 20).eval()
    x, x_lens, _, _ = _batch()
    expected, lens = model.encode(x, x_lens)
    garbage = torch.where((torch.arange(100) < x_lens[:, None])[..., None], x, torch.tensor(99.0))
    torch.testing.assert_close(model.encode(garbage, x_lens)[0], expected, atol=1e-5, rtol=0)
    for i, length in enumerate(x_lens):
        alone, _ = model.encode(x[i : i + 1, :length], x_lens[i : i + 1])
        torch.testing.assert_close(alone[0], expected[i, : lens[i]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", OPTIONS + ZIPFORMERS)
def test_loss_of_a_batch_is_the_sum_over_its_utterances(options):
    """Smoothing (am_scale, lm_scale) is disabled, because it averages over the batch."""
    model = build_model(_config(ctc_head=True, **options), 20).eval()
    x, x_lens, y, y_lens = _batch()
    scales = {"prune_range": 6, "am_scale": 0.0, "lm_scale": 0.0}
    together = model(x, x_lens, y, y_lens, **scales)
    alone = [
        model(x[i : i + 1, : x_lens[i]], x_lens[i : i + 1], y[i : i + 1, : y_lens[i]], y_lens[i : i + 1], **scales)
        for i in range(3)
    ]
    for loss, losses in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(loss, torch.stack(losses).sum(), rtol=1e-4, atol=0)


def test_every_parameter_has_a_gradient():
    model = build_model(_config(ctc_head=True, cnn_module_kernel=5, memory_size=2), 20)
    losses = model(*_batch())
    sum(losses).backward()
    # The memory vectors of the last layer are unused, but frames use the same parameters.
    without_gradient = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without_gradient == []


def test_losses_are_float32_under_autocast():
    model = build_model(_config(ctc_head=True, cnn_module_kernel=5), 20).eval()
    expected = model(*_batch_of_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(*_batch_of_seed(1))
    assert [loss.dtype for loss in losses] == [torch.float32] * 3
    for loss, exact in zip(losses, expected, strict=True):
        torch.testing.assert_close(loss, exact, rtol=0.03, atol=0)


def _batch_of_seed(seed):
    torch.manual_seed(seed)
    return _batch()


def test_joiner_runs_in_float32_under_autocast():
    model, dtypes = build_model(_config(), 20), []
    model.joiner.output_linear.register_forward_hook(
        lambda module, args, out: dtypes.append((args[0].dtype, out.dtype))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(*_batch())
    assert dtypes == [(torch.float32, torch.float32)]


def test_encoder_has_the_options_of_the_config():
    """The encoder's lengths are in frames of 40 ms, the options in feature frames of 10 ms."""
    model = build_model(_config(left_context_length=40, memory_size=3, dropout=0.25, cnn_module_kernel=5), 20)
    encoder = model.encoder
    assert (encoder.segment_length, encoder.left_context_length, encoder.right_context_length) == (8, 10, 2)
    assert encoder.max_memory_size == 3
    assert encoder.cnn_module_kernel == 5
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    assert {layer.attention.dropout for layer in encoder.emformer_layers} == {0.25}


def test_predictor_input_starts_with_blank():
    model, inputs = build_model(_config(), 20), []
    model.decoder.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x, x_lens, y, y_lens = _batch()
    model(x, x_lens, y, y_lens)
    assert torch.equal(inputs[0], torch.nn.functional.pad(y, (1, 0)))


def test_chunk_outputs_at_most_one_segment():
    model = build_model(_config(), 20).eval()
    x_lens = torch.tensor([model.chunk_window, 33, 32, 5, 1])
    _, lens, _ = model.stream(torch.randn(5, model.chunk_window, 80), x_lens, model.init_states(5, default_device()))
    assert lens.tolist() == [8, 8, 8, 2, 1]


def test_ctc_loss_is_none_without_a_ctc_head():
    model = build_model(_config(), 20)
    assert model(*_batch()).ctc is None
    assert model.ctc_output is None


def test_more_tokens_than_frames_is_an_error():
    model = build_model(_config(), 20)
    with pytest.raises(ValueError, match="utterance 0 has 1 for 2 tokens"):
        model(torch.randn(1, 4, 80), torch.tensor([4]), torch.tensor([[3, 4]]), torch.tensor([2]))


def test_initial_projections_are_small():
    model = build_model(ModelConfig(num_encoder_layers=1), 20)
    for projection in (model.joiner.encoder_proj, model.joiner.decoder_proj, model.simple_am_proj):
        assert projection.weight.abs().max() <= 0.25 / math.sqrt(512)
        assert projection.bias.abs().max() <= 0.025


def test_chunk_lengths_are_in_feature_frames():
    model = build_model(_config(segment_length=32, right_context_length=8), 20)
    assert (model.chunk_shift, model.chunk_window) == (32, 32 + 8 + 3)


def test_training_decreases_the_loss():
    torch.manual_seed(0)
    config = _config(encoder_dim=48, nhead=4, dim_feedforward=96, decoder_dim=48, joiner_dim=48, cnn_module_kernel=7)
    model = build_model(config, 20)
    x, x_lens = torch.randn(4, 80, 80) * 2 - 8, torch.full((4,), 80)
    y, y_lens = torch.randint(3, 20, (4, 5)), torch.full((4,), 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(x, x_lens, y, y_lens)
        (0.5 * loss.simple + loss.pruned).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.pruned.detach()) / 20)
    assert losses[0] > 3
    assert losses[-1] < 0.5
