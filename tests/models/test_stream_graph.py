"""The frozen streaming graph equals the model."""

import copy

import pytest
import torch
from stream_models import MODELS, make_model

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.stream_graph import StreamGraph
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks

DEEP = ModelConfig(
    encoder_type="zipformer",
    zipformer="tiny",
    num_encoder_layers="1,2,1,1",
    downsampling_factor="1,4,8,2",
    encoder_dim="16,24,16,32",
    encoder_unmasked_dim="16",
    feedforward_dim="16",
    num_heads="4,2,4,4",
    query_head_dim="4",
    cnn_module_kernel="31,7,7,15",
    chunk_size="32",
    left_context_frames="64",
)


@pytest.fixture(params=[*MODELS, "zipformer-deep"])
def model(request):
    if request.param != "zipformer-deep":
        return make_model(request.param)
    model = build_model(DEEP, 20).eval()
    with torch.no_grad():  # parameters that have no effect at their initial values
        for name, parameter in model.named_parameters():
            if name.endswith(("chunkwise_conv_scale", "downsample.bias", "out_proj.weight")):
                parameter.normal_(std=0.3)
    return model


def _chunk(model, streams):
    """Return features of a chunk, and the number of valid frames of each stream."""
    x_lens = torch.randint(1, model.chunk_window + 1, (streams,))
    x_lens[0] = model.chunk_window
    return torch.randn(streams, model.chunk_window, 80) * 2 - 8, x_lens


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_graph_equals_model_for_any_batch_size_and_stream_position(model):
    graph = StreamGraph(model, {})
    states = model.init_states(1)
    for streams in (1, 1, 4, 4, 2):
        joined = model.unstack_states(states)[:streams]
        joined += [model.init_states(1) for _ in range(streams - len(joined))]
        batch_states = model.stack_states(joined)
        before = copy.deepcopy(batch_states)
        x, x_lens = _chunk(model, streams)
        expected_out, expected_lens, expected_states = model.stream(x, x_lens, batch_states)
        out, lens, states = graph(x, x_lens, batch_states)
        _close(out, expected_out)
        assert torch.equal(lens, expected_lens)
        assert [state.dtype for state in states] == [state.dtype for state in expected_states]
        _close(states, expected_states)
        assert all(torch.equal(state, copied) for state, copied in zip(batch_states, before, strict=True))


@torch.inference_mode()
def test_graph_of_a_pathway_equals_masked_model(model):
    masks = PathwayMasks.dense(model, ["en", "fr"])
    for name in masks.names:
        masks.set_mask(name, "fr", torch.rand(masks.codes[name].shape) < 0.5)
    pathways = FoldedPathways(model, masks)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    graph = StreamGraph(model, pathways.weights("fr"))
    x, x_lens = _chunk(model, 2)
    with pathways.activate("fr"):
        expected, _, _ = model.stream(x, x_lens, model.init_states(2))
    dense, _, _ = model.stream(x, x_lens, model.init_states(2))
    assert not torch.allclose(dense, expected, atol=1e-3)
    _close(graph(x, x_lens, model.init_states(2))[0], expected)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@torch.inference_mode()
def test_graph_folds_operations_on_weights_into_constants(model):
    """Parameters, positional encodings, downsampling weights and norm scales are constants."""
    nodes = {node.kind() for node in StreamGraph(model, {})._graph.graph.nodes()}
    assert not nodes & {"prim::GetAttr", "prim::CallMethod", "aten::atan", "aten::exp", "aten::repeat_interleave"}
