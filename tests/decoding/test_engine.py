"""ONNX Runtime and eager torch give the same results, and failures of ONNX Runtime are reported."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch
from drawn_masks import random_masks
from stream_models import make_model

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import EngineError, Source, StreamEncoder, StreamingDecoder, engine
from icefall_pathways.export.stream_graph import export_stream
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch

LANGUAGES = ("en", "fr", "it")
LENGTHS = (60, 33, 131, 97, 16, 128, 61, 8, 200)  # feature frames


@pytest.fixture(scope="module", params=["emformer-memory", "zipformer"])
def model(request):
    torch.manual_seed(1)
    return make_model(request.param)


@pytest.fixture(scope="module")
def masks(model):
    return random_masks(model, LANGUAGES, density=0.7)


def _sources():
    torch.manual_seed(2)
    features = [(torch.randn(length, 80) * 3 - 8).split(16) for length in LENGTHS]
    return [Source(i, blocks, LANGUAGES[i % 3]) for i, blocks in enumerate(features)]


def _decode(decoder):
    return dict(sorted(decoder.decode(_sources(), 4, from_features=True)))


def _decoder(model, encoder, search=GreedySearch):
    return StreamingDecoder(model, dict.fromkeys(LANGUAGES, search(model)), FbankConfig(), encoder.pathways, encoder)


def _assert_same(actual, expected):
    assert [(x.tokens, x.timestamps) for x in actual.values()] == [(x.tokens, x.timestamps) for x in expected.values()]
    log_probs = [x.log_prob for x in expected.values()]
    assert [x.log_prob for x in actual.values()] == pytest.approx(log_probs, abs=1e-3)


def test_engines_decode_the_same_tokens(monkeypatch, model, masks):
    """With one export for all languages, made while streams are open, and with memory for one language only."""
    expected = {}
    for search in (GreedySearch, ModifiedBeamSearch):
        eager = StreamEncoder(model, FoldedPathways(model, masks), "eager")
        expected[search] = _decode(_decoder(model, eager, search))
        assert eager.current_engine == "eager"
    assert len({tuple(x.tokens) for x in expected[GreedySearch].values()}) == len(LENGTHS)
    pathways, exports = FoldedPathways(model, masks, max_bytes=1), []
    monkeypatch.setattr(engine, "export_stream", lambda *args: exports.append(args) or export_stream(*args))
    encoder = StreamEncoder(model, pathways, "auto", onnx_after=3)
    _assert_same(_decode(_decoder(model, encoder)), expected[GreedySearch])
    assert encoder.current_engine == "onnx"
    _assert_same(_decode(_decoder(model, encoder, ModifiedBeamSearch)), expected[ModifiedBeamSearch])
    assert len(exports) == 1 and len(pathways.cached_languages) == 1


@pytest.mark.parametrize("kind", ["emformer-language", "zipformer-language"])
def test_engines_decode_the_same_tokens_of_a_dense_model_with_the_language_as_input(kind):
    torch.manual_seed(1)
    model = make_model(kind)
    pathways = FoldedPathways(model, None)
    expected = _decode(_decoder(model, StreamEncoder(model, pathways, "eager")))
    _assert_same(_decode(_decoder(model, StreamEncoder(model, pathways, "onnx"))), expected)
    assert not pathways.are_equal(LANGUAGES)
    english = _decoder(model, StreamEncoder(model, FoldedPathways(model, None), "eager")).decode(
        [replace(source, language="en") for source in _sources()], 4, from_features=True
    )
    english = dict(english)
    differs = [english[key].tokens != expected[key].tokens for key in expected]
    assert any(differs) and not any(differs[::3])


@pytest.mark.parametrize("num_kept", [1, 2, 3])
def test_sessions_are_kept_within_the_memory_of_pathways(monkeypatch, model, masks, num_kept):
    """And the weights of an encoder in ONNX Runtime are not in the memory of torch."""
    names = masks.below("encoder").names
    size = sum(model.get_parameter(name).numel() * 4 for name in names)
    pathways, created = FoldedPathways(model, masks, max_bytes=num_kept * size), []
    encoder = StreamEncoder(model, pathways, "onnx")
    original = pathways.weights
    monkeypatch.setattr(pathways, "weights", lambda language: created.append(language) or original(language))
    encoder.start_onnx(["en", "fr", "it"])
    assert created == ["en", "fr", "it"]
    encoder.start_onnx(["it", "fr", "en"][:num_kept])
    assert created == ["en", "fr", "it"]
    encoder.start_onnx(["en"])
    assert len(created) == (3 if num_kept == 3 else 4)
    with pathways.activate("en"):
        for module, attribute in (name.rsplit(".", 1) for name in masks.names):
            is_active = attribute in vars(model.get_submodule(module))
            assert is_active == (f"{module}.{attribute}" not in names)


def test_eager_torch_continues_if_the_sessions_of_all_languages_exceed_the_memory(model, masks):
    encoder = StreamEncoder(model, FoldedPathways(model, masks, max_bytes=1e4), "auto", onnx_after=0)
    with pytest.warns(UserWarning, match="3 languages take .* MB, more than --pathway-memory 0.01: continuing"):
        encoder.start_onnx(LANGUAGES)
    _decode(_decoder(model, encoder))
    assert encoder.current_engine == "eager"


def test_memory_is_checked_before_the_export_only(recwarn, model, masks):
    """Streams in more languages than fit do not replace an engine that runs."""
    encoder = StreamEncoder(model, FoldedPathways(model, masks, max_bytes=1e4), "auto")
    encoder.start_onnx(["en"])
    encoder.start_onnx(LANGUAGES)
    assert encoder.engine == "auto" and encoder.current_engine == "onnx"
    assert not [warning for warning in recwarn if "--pathway-memory" in str(warning.message)]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("onnxruntime", None, "onnxruntime cannot be imported .*: install it, or pass --engine eager"),
        ("export_stream", None, "the encoder cannot run in ONNX Runtime .*: pass --engine eager"),
    ],
)
def test_failure_of_onnx_runtime_is_reported(monkeypatch, name, value, message):
    """As an error if ONNX Runtime is the engine of choice, else as one warning; the results are those of torch."""
    model = make_model("emformer")
    expected = _decode(_decoder(model, StreamEncoder(model, None, "eager")))
    if name == "onnxruntime":
        monkeypatch.setitem(sys.modules, name, value)
    else:
        monkeypatch.setattr(engine, name, value)
    with pytest.raises(EngineError, match=message):
        _decode(_decoder(model, StreamEncoder(model, None, "onnx")))
    encoder = StreamEncoder(model, None, "auto", onnx_after=2)
    with pytest.warns(UserWarning, match=message) as caught:
        _assert_same(_decode(_decoder(model, encoder)), expected)
    assert len(caught) == 1 and encoder.current_engine == "eager"


def test_onnx_is_rejected_on_gpus():
    model = make_model("emformer").to("meta")
    with pytest.raises(EngineError, match="runs on CPUs, and the model is on meta: pass --engine auto or eager"):
        StreamEncoder(model, None, "onnx")
    encoder = StreamEncoder(model, None, "auto", onnx_after=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.start_onnx(["en"])
    assert encoder.current_engine == "eager"
