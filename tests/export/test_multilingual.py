"""ONNX graphs with the pathways of all languages: they equal the model, and a client decodes the same without torch."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from drawn_masks import random_masks
from stream_models import make_model, spread_tokens
from tiny_experiment import make_experiment, write_complementary_masks

from icefall_pathways.commands.export import Config, run
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.level import normalize_level
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.streaming import Source, StreamEncoder, StreamingDecoder
from icefall_pathways.export.code_coding import entropy_bytes
from icefall_pathways.export.multilingual import LANGUAGE, multilingual_graph
from icefall_pathways.export.multilingual_folder import (
    encoder_step,
    export_multilingual,
    predictor_step,
)
from icefall_pathways.export.packed_weights import pack_weights
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.searches import GreedySearch

CLIENT = Path(__file__).parents[2] / "examples" / "onnx_client.py"
LANGUAGES = ["en", "fr", "nl"]
ROOTS = ("encoder_embed", "encoder", "decoder")
KINDS = ("emformer-memory", "zipformer")
LANGUAGE_KINDS = ("emformer-language", "zipformer-language")
FEATURES = FbankConfig(level_norm="running-max")
VOCAB_SIZE = 24


def make_session(graph):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the failures that tests expect
    return onnxruntime.InferenceSession(graph, options)


def run_session(session, inputs):
    return [torch.from_numpy(output) for output in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


@cache
def exported_encoder(kind, precision="float32", level_norm="running-max"):
    """Return model, masks of three languages, step and graph of the encoder."""
    torch.manual_seed(1)
    model = make_model(kind)
    masks = random_masks(model, LANGUAGES, ROOTS).below("encoder")
    step = encoder_step(model, masks, replace(FEATURES, level_norm=level_norm))
    return model, masks, step, multilingual_graph(step, masks, precision)


@pytest.mark.parametrize(
    "kind, level_norm", [("emformer", "none"), *((kind, "running-max") for kind in (*KINDS, *LANGUAGE_KINDS))]
)
@torch.inference_mode()
def test_encoder_equals_every_pathway_for_streams_of_any_age(kind, level_norm):
    """In one batch, with chunks that are not full; a stream may change its language."""
    model, masks, step, graph = exported_encoder(kind, level_norm=level_norm)
    assert onnx.load_from_string(graph).ir_version == 8
    pathways, session = FoldedPathways(model, masks), make_session(graph)
    names = [value.name for value in session.get_inputs()]
    states = names[2:-1]
    assert names == [*step.inputs, LANGUAGE] and [value.name for value in session.get_outputs()] == step.outputs
    languages, native, packed, worst, magnitude = [], [], {}, 0.0, 0.0
    utterances = [torch.randn(model.chunk_window + 12 * model.chunk_shift, 80) * 2 - 8 for _ in range(7)]
    utterances = [utterance - 12 * torch.rand(()) for utterance in utterances]
    first = []
    for step_index in range(12):
        if step_index in (0, 1, 4, 5, 7, 9):  # a new stream
            languages.append(len(languages) % 3)
            first.append(step_index)
            native.append(model.init_states(1))
            new = {name: torch.zeros_like(step.inputs[name].narrow(step.axes[name], 0, 1)) for name in states}
            packed = {n: torch.cat([packed[n], new[n]], step.axes[n]) if packed else new[n] for n in states}
        languages[0] = (2, 0)[step_index > 8]
        starts = [(step_index - start) * model.chunk_shift for start in first]
        lens = [model.chunk_window] * len(starts)
        lens[-1] -= 3 * (step_index % 2)
        normalized = [normalize_level(utterance, level_norm) for utterance in utterances]
        x, chunks = (
            torch.stack([frames[s : s + model.chunk_window] for frames, s in zip(all_frames, starts, strict=False)])
            for all_frames in (utterances, normalized)
        )
        batch = {"x": x, "x_lens": torch.tensor(lens), **packed, LANGUAGE: torch.tensor(languages)}
        out, out_lens, *new_states = run_session(session, batch)
        packed = dict(zip(states, new_states, strict=True))
        for row, language in enumerate(languages):
            with pathways.activate(LANGUAGES[language]):
                frames, num, native[row] = model.stream(
                    chunks[row : row + 1], torch.tensor(lens[row : row + 1]), native[row]
                )
            expected = model.joiner.encoder_proj(frames)
            worst = max(worst, float((out[row] - expected[0])[: int(num)].abs().max()))
            magnitude = max(magnitude, float(expected.abs().max()))
            assert out_lens[row] == num
    assert worst <= 1e-4 < magnitude / 1e3
    states_of_model = model.stack_states(native)
    torch.testing.assert_close(list(packed.values())[: len(states_of_model)], states_of_model, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_streams_do_not_depend_on_their_batch():
    *_, step, graph = exported_encoder("emformer-memory")
    session = make_session(graph)
    inputs = {
        name: torch.randn(tensor.shape).to(tensor.dtype) if name == "x" else tensor
        for name, tensor in step.inputs.items()
    }
    inputs[LANGUAGE] = torch.tensor([1, 0, 1])
    together = run_session(session, inputs)
    for row in range(3):
        alone = {n: t.narrow(step.axes.get(n, 0), row, 1) for n, t in inputs.items()}
        for name, a, b in zip(step.outputs, run_session(session, alone), together, strict=True):
            torch.testing.assert_close(a, b.narrow(step.axes[name], row, 1), atol=1e-5, rtol=1e-5)
    other = run_session(session, inputs | {LANGUAGE: torch.tensor([1, 2, 1])})[0]
    assert torch.equal(other[[0, 2]], together[0][[0, 2]]) and not torch.allclose(other[1], together[0][1], atol=1e-2)


@pytest.mark.parametrize("context_size", [1, 2])
@torch.inference_mode()
def test_predictor_equals_every_pathway(context_size):
    torch.manual_seed(1)
    config = ModelConfig(encoder_type="zipformer", zipformer="tiny", context_size=context_size)
    model = build_model(config, VOCAB_SIZE).eval()
    model.decoder.embedding.weight.normal_()
    masks = random_masks(model, LANGUAGES, ROOTS)
    graph = multilingual_graph(predictor_step(model), masks.below("decoder."))
    y = torch.tensor([[-1, 0], [0, 3], [7, 19], [19, 1], [7, 19]])[:, -context_size:]
    languages = torch.tensor([2, 0, 1, 2, 2])
    (actual,) = run_session(make_session(graph), {"y": y, LANGUAGE: languages})
    pathways = FoldedPathways(model, masks)
    for row, language in enumerate(languages):
        with pathways.activate(LANGUAGES[language]):
            expected = model.joiner.decoder_proj(model.decoder(y[row : row + 1], need_pad=False))[0, 0]
        torch.testing.assert_close(actual[row], expected)
    assert torch.allclose(actual[2], actual[4]) == (context_size == 1)  # masks cover the convolution


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("index", [-1, 3])
def test_unknown_language_is_an_error(graph, index):
    model, _, step, encoder = exported_encoder("emformer-memory")
    if graph == "decoder":
        step = predictor_step(model)
        encoder = multilingual_graph(step, random_masks(model, LANGUAGES, ROOTS).below("decoder."))
    with pytest.raises(Exception, match="language_has_to_be_an_index_of_the_languages"):
        run_session(make_session(encoder), {**step.inputs, LANGUAGE: torch.tensor([0, index, 0])})


def test_weights_are_expanded_once_when_the_graph_is_loaded(tmp_path):
    """A run only selects: the nodes outside of the loop do not depend on the number of weights."""
    *_, graph = exported_encoder("emformer-memory", "float16")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(graph, options)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators.keys() <= {"Less", "Where", "Gather", "Unique", "Size", "Loop", "Range", "ScatterElements"}
    assert "CumSum" in {node.op_type for node in onnx.load_from_string(graph).graph.node}


@pytest.fixture(scope="module")
def wide():
    """Return a model whose size is mostly weights, with masks of which half of the entries are in the union."""
    torch.manual_seed(1)
    model = build_model(ModelConfig(num_encoder_layers=3, encoder_dim=256, nhead=4, dim_feedforward=1024), 20).eval()
    masks = PathwayMasks.dense(model, ["en", "fr", "it", "nl"], ROOTS)
    for name, code in masks.codes.items():
        common = torch.rand(code.shape)
        for language in masks.languages:
            masks.set_mask(name, language, common + 0.3 * torch.rand(code.shape) > 0.8)
    return model, masks.below("encoder")


def test_size_is_near_the_union(wide):
    """Within 1.06 of the entropy of the codes and the weights in use, plus nodes; far below one graph per language."""
    model, masks = wide
    assert 0.3 < masks.union_density() < 0.6
    parameters = dict(model.named_parameters())
    used = {name: tensor for name, tensor in parameters.items() if name.startswith(("encoder", "joiner.encoder_proj"))}
    step, sizes = encoder_step(model, masks, FEATURES), {}
    for precision in ("float32", "float16"):
        packed = pack_weights(used, masks.codes, "float32")["values"].numel()
        bound = entropy_bytes(list(masks.codes.values())) + packed * (4 if precision == "float32" else 2)
        sizes[precision] = len(multilingual_graph(step, masks, precision))
        assert sizes[precision] < 1.06 * bound + 200_000
    dense = multilingual_graph(encoder_step(model, masks.subset(), FEATURES), masks.subset())
    assert sizes["float32"] < 0.2 * 4 * len(dense)
    assert sizes["float16"] < 0.6 * sizes["float32"]


@torch.inference_mode()
def test_float16_stores_rounded_weights():
    _, _, step, graph = exported_encoder("emformer-memory")
    half = exported_encoder("emformer-memory", "float16")[3]
    inputs = {**step.inputs, "x": torch.randn(step.inputs["x"].shape) * 2 - 8, LANGUAGE: torch.tensor([0, 1, 2])}
    exact, rounded = (run_session(make_session(data), inputs)[0] for data in (graph, half))
    assert 0 < float((exact - rounded).abs().max()) < 0.05


def test_weights_that_are_not_finite_are_rejected():
    model = make_model("emformer")
    masks = random_masks(model, LANGUAGES, ROOTS).below("encoder")
    masks.set_mask("encoder.emformer_layers.0.pos_ff.1.weight", "en", torch.ones(16, 16, dtype=torch.bool))
    with torch.no_grad():
        model.encoder.emformer_layers[0].pos_ff[1].weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"pos_ff.1.weight has 1 NaN or infinite of 256 .*: export another checkpoint"):
        multilingual_graph(encoder_step(model, masks, FEATURES), masks)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["one two three", "four five", "een twee drie", "vier vijf zes"]
    return Tokenizer(train_tokenizer(texts, VOCAB_SIZE, tmp_path_factory.mktemp("tokens")))


@pytest.mark.parametrize("kind, roots", [("emformer-memory", ROOTS), ("zipformer", ROOTS), ("emformer", ("encoder",))])
def test_client_decodes_as_the_streaming_decoder(kind, roots, tokenizer, tmp_path):
    """Files of several languages and lengths in one batch, and without torch."""
    torch.manual_seed(1)
    model = make_model(kind, VOCAB_SIZE)
    masks = random_masks(model, LANGUAGES, roots)
    pathways = FoldedPathways(model, masks)
    spread_tokens(pathways)
    export_multilingual(tmp_path, model, masks, tokenizer, FEATURES)
    sources = []
    for index in range(7):
        samples = torch.randn(9000 + 4370 * index) * 0.1 * (torch.arange(9000 + 4370 * index) // 1600 % 3)
        samples = (samples / samples.abs().max()).numpy() / 2**index
        soundfile.write(tmp_path / f"{index}.wav", samples, 16000, subtype="FLOAT")
        sources.append(Source(index, [torch.from_numpy(samples)], LANGUAGES[index % 3]))
    searches = {language: GreedySearch(model) for language in LANGUAGES}
    encoder = StreamEncoder(model, pathways, "eager")
    decoder = StreamingDecoder(model, searches, FEATURES, pathways, encoder)
    symbols = tokenizer.symbols
    expected = {
        key: "".join(symbols[token] for token in hypothesis.tokens).replace("▁", " ").strip()
        for key, hypothesis in decoder.decode(sources, 7)
    }
    files = [f"{source.language}={tmp_path / f'{source.key}.wav'}" for source in sources]
    lines = run_client(tmp_path, *files).stdout.splitlines()
    assert lines == [f"{tmp_path / f'{index}.wav'}: {expected[index]}" for index in range(7)]
    assert all(expected.values()) and len(set("".join(expected.values()))) > 5


def run_client(*arguments):
    """Run the client in a process in which torch and this package cannot be imported."""
    blocked = (
        "import sys, runpy; sys.modules['torch'] = sys.modules['icefall_pathways'] = None; sys.argv = sys.argv[1:]"
    )
    code = f"{blocked}; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, str(CLIENT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_client_is_short():
    assert len(CLIENT.read_text(encoding="utf-8").splitlines()) <= 100


def test_command_writes_a_folder(tmp_path, capsys):
    make_experiment(tmp_path)
    config = Config(exp_dir=tmp_path / "exp", output_dir=tmp_path / "out", format="onnx", languages="nl en")
    with pytest.raises(ValueError, match="no masks"):
        run(config)
    write_complementary_masks(tmp_path / "exp")
    run(config)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{tmp_path / 'out'}: encoder.onnx 0.")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt", "onnx.json"}
    description = json.loads((tmp_path / "out" / "onnx.json").read_text(encoding="utf-8"))
    assert description["languages"] == ["nl", "en"] and description["features"]["num_bins"] == 80
    session = make_session(tmp_path / "out" / "encoder.onnx")
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert {state["name"]: state["shape"] for state in description["states"]}.items() <= shapes.items()
    assert shapes["x"] == ["N", description["chunk_window"], 80]
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    for folder, file, message in (
        ("out", f"fr={tmp_path / 'a.wav'}", "unknown language 'fr': expected one of nl, en"),
        ("out", "a.wav", "a.wav: expected LANGUAGE=FILE, such as fr=a.wav"),
        ("out", "nl=b.wav", "Error opening 'b.wav'"),
        ("in", "nl=a.wav", "No such file or directory"),
    ):
        failed = run_client(tmp_path / folder, file)
        assert failed.returncode == 2 and "Traceback" not in failed.stderr
        assert message in failed.stderr.splitlines()[-1]
    with pytest.raises(ValueError, match="one precision with --format onnx"):
        run(replace(config, precisions=("float32", "float16")))
    with pytest.raises(ValueError, match="float32 or float16"):
        run(replace(config, precisions=("int8",)))
