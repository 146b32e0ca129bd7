"""The exported streaming encoder equals the model."""

import copy
import itertools
import math
import warnings

import onnx
import onnxruntime
import pytest
import torch
from drawn_masks import random_masks
from stream_models import MODELS, make_model

from icefall_pathways import torch_compat
from icefall_pathways.export.stream_graph import export_stream, language_weights
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways

UNEQUAL_STACKS = ModelConfig(
    encoder_type="zipformer",
    zipformer="tiny",
    num_encoder_layers="1,1",
    downsampling_factor="1,4",
    encoder_dim="16,24",
    encoder_unmasked_dim="16",
    feedforward_dim="16",
    num_heads="4,2",
    query_head_dim="4",
    cnn_module_kernel="31,7",
    chunk_size="32",
    left_context_frames="64",
)


def make(kind):
    torch.manual_seed(1)
    if kind != "zipformer":
        return make_model(kind)
    model = build_model(UNEQUAL_STACKS, 20).eval()
    with torch.no_grad():  # parameters that have no effect at their initial values
        for name, parameter in model.named_parameters():
            if name.endswith(("chunkwise_conv_scale", "downsample.bias", "out_proj.weight")):
                parameter.normal_(std=0.3)
    return model


class Runner:
    """Run an exported graph as `Transducer.stream`."""

    def __init__(self, graph, weights):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weight.numpy()) for weight in weights.values()]
        options.add_external_initializers(list(weights), values)
        self.graph, self.session = graph, onnxruntime.InferenceSession(graph.onnx, options)

    def __call__(self, x, x_lens, states):
        inputs = dict(zip(self.graph.inputs, [x, x_lens, *states], strict=True))
        used = {value.name: inputs[value.name].numpy() for value in self.session.get_inputs()}
        out, lens, *states = map(torch.from_numpy, self.session.run(self.graph.outputs, used))
        return out, lens, states


def _chunk(model, streams):
    """Return features of a chunk, and the number of valid frames of each stream."""
    x_lens = torch.randint(1, model.chunk_window + 1, (streams,))
    x_lens[0] = model.chunk_window
    return torch.randn(streams, model.chunk_window, 80) * 2 - 8, x_lens


def _close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "emformer-ctc"])
@torch.inference_mode()
def test_graph_equals_model_for_any_number_of_streams_of_any_age(kind):
    model = make(kind)
    graph = export_stream(model, [])
    assert not graph.weights
    run = Runner(graph, {})
    states = model.init_states(1)
    for streams in (1, 1, 4, 4, 2, 3, 7, 7, 5, 16, 1, 2):
        joined = model.unstack_states(states)[:streams]
        joined += [model.init_states(1) for _ in range(streams - len(joined))]
        states = model.stack_states(joined)
        before = copy.deepcopy(states)
        x, x_lens = _chunk(model, streams)
        expected_out, expected_lens, expected_states = model.stream(x, x_lens, states)
        out, lens, new_states = run(x, x_lens, states)
        _close(out, expected_out)
        assert torch.equal(lens, expected_lens)
        assert [state.dtype for state in new_states] == [state.dtype for state in expected_states]
        _close(new_states, expected_states)
        assert all(torch.equal(state, copied) for state, copied in zip(states, before, strict=True))
        states = new_states


@pytest.mark.parametrize("kind, roots", [("emformer-memory", ("encoder", "decoder")), ("zipformer", None)])
@torch.inference_mode()
def test_one_graph_encodes_every_language(kind, roots):
    """Also those whose weights are equal to others or zero, and after the memory of the weights has been reused."""
    model = make(kind)
    masks = random_masks(model, ["en", "fr", "it"], roots)
    for name in masks.names:
        masks.set_mask(name, "it", torch.zeros(masks.codes[name].shape, dtype=torch.bool))
    pathways = FoldedPathways(model, masks)
    stored = {name: weight.clone() for name, weight in model.state_dict().items()}
    graph = export_stream(model, masks.below("encoder").names)
    encoded = []
    x, x_lens = _chunk(model, 2)
    for language in ("it", "fr", "en"):
        with pathways.activate(language):
            expected, _, _ = model.stream(x, x_lens, model.init_states(2))
        products = pathways.weights(language)
        weights = language_weights(model, products, graph.weights)
        run = Runner(graph, weights)
        for weight in (*products.values(), *weights.values()):
            weight.fill_(torch.nan)
        encoded.append(run(x, x_lens, model.init_states(2))[0])
        _close(encoded[-1], expected)
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in itertools.combinations(encoded, 2))
    assert all(torch.equal(weight, stored[name]) for name, weight in model.state_dict().items())


def test_constants_are_the_weights_that_no_mask_covers():
    """A linear layer's weight of a language is not copied."""
    model = make("zipformer")
    masks = random_masks(model, ["en"])
    graph = export_stream(model, masks.below("encoder").names)
    sizes = [math.prod(each.dims) for each in onnx.load_from_string(graph.onnx).graph.initializer if each.raw_data]
    covered = {name.removeprefix("model.") for name in graph.weights} | set(masks.names)
    assert sum(sizes) < sum(weight.numel() for name, weight in model.named_parameters() if name not in covered) * 1.1
    products = FoldedPathways(model, masks).weights("en")
    shared = {weight.data_ptr() for weight in products.values()}
    weights = language_weights(model, products, graph.weights)
    assert {name for name, weight in weights.items() if weight.data_ptr() not in shared} == {
        name for name in weights if name.endswith(("matrices", "depthwise_conv.bias"))
    }


def test_export_is_the_one_by_tracing_and_warns_of_nothing():
    """On both versions of torch; the other exporter of newer versions names its metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = onnx.load_from_string(export_stream(make("emformer"), []).onnx)
    assert not torch_compat.is_exporting()
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 17}
    assert graph.producer_name == "pytorch" and not graph.metadata_props
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
