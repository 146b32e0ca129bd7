"""Models exported for sherpa-onnx: the graphs equal the model, and sherpa-onnx decodes the same tokens."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

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
from icefall_pathways.data.datamodule import DataConfig
from icefall_pathways.data.level import LevelNorm, normalize_level
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.pretrained import TrainedModel
from icefall_pathways.decoding.sherpa_check import (
    Comparison,
    check_equal,
    count_equal,
    decode_as_sherpa,
    pad_for_sherpa,
)
from icefall_pathways.experiment import checkpoints
from icefall_pathways.export.graphs import encoder_graph, joiner_graph, predictor_graph
from icefall_pathways.export.language_model import language_model
from icefall_pathways.export.onnx_precision import convert
from icefall_pathways.export.precision import PRECISIONS
from icefall_pathways.export.sherpa import INDEX_FILE, export_sherpa
from icefall_pathways.export.sherpa_process import SherpaError, decode_with_sherpa
from icefall_pathways.export.sherpa_states import sherpa_states
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch

README = Path(__file__).parents[2] / "README.md"
KINDS = ("emformer", "emformer-memory", "zipformer")
TEXTS = ["one two three", "four five", "een twee drie", "vier vijf zes"]
VOCAB_SIZE = 24
UNKNOWN = 2  # sherpa-onnx never emits it


def run_graph(graph, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options)
    names = [value.name for value in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))
    return [torch.from_numpy(output) for output in outputs]


@cache
def model_and_graph(kind, level_norm="none"):
    torch.manual_seed(1)
    model = make_model(kind)
    return model, encoder_graph(model, level_norm)


def zero_states(model, num_streams):
    """Return the initial states in sherpa-onnx."""
    return sherpa_states(model).pack(model.init_states(num_streams), torch.zeros(num_streams))


@pytest.mark.parametrize("level_norm", get_args(LevelNorm))
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_encoder_equals_the_model_for_streams_of_any_age(kind, level_norm):
    """And for streams of different levels, whose chunks overlap: features are normalized as whole utterances."""
    model, graph = model_and_graph(kind, level_norm)
    states = sherpa_states(model)
    assert onnx.load_from_string(graph).producer_name == "pytorch"  # the exporter that traces; see test_stream.py
    native, packed, worst = model.init_states(4), zero_states(model, 4), 0.0
    assert not any(state.any() for state in packed)  # sherpa-onnx starts with zeros
    session = onnxruntime.InferenceSession(graph)
    assert [value.name for value in session.get_inputs()] == ["x", *states.names]
    shift, window = model.chunk_shift, model.chunk_window
    raw = [new_utterance(window + 11 * shift) for _ in range(4)]
    first = [0] * 4  # the step at which each stream starts
    for step in range(12):
        if step in (1, 5, 6):  # the first stream ends, and a new one starts
            raw, first = [*raw[1:], new_utterance(window + 11 * shift)], [*first[1:], step]
            native = model.stack_states([*model.unstack_states(native)[1:], model.init_states(1)])
            pairs = zip(packed, states.axes, strict=True)
            ends = [(state.narrow(axis, 1, 3), state.narrow(axis, 0, 1)) for state, axis in pairs]
            packed = [torch.cat([a, torch.zeros_like(b)], axis) for (a, b), axis in zip(ends, states.axes, strict=True)]
        starts = [(step - start) * shift for start in first]
        chunks = [
            torch.stack([frames[start : start + window] for frames, start in zip(utterances, starts, strict=True)])
            for utterances in (raw, [normalize_level(frames, level_norm) for frames in raw])
        ]
        frames, _, native = model.stream(chunks[1], torch.full((4,), window), native)
        inputs = dict(zip(["x", *states.names], (tensor.numpy() for tensor in [chunks[0], *packed]), strict=True))
        out, *packed = map(torch.from_numpy, session.run(None, inputs))
        worst = max(worst, float((out - model.joiner.encoder_proj(frames)).abs().max()))
    assert worst <= 1e-4
    unpacked, level = states.unpack(packed)
    torch.testing.assert_close(states.pack(unpacked, level), packed)
    torch.testing.assert_close(packed[:-1], states.pack(native, level)[:-1], atol=1e-4, rtol=0)
    assert (len(level.unique()) > 1) == (level_norm != "none")


def new_utterance(num_frames):
    """Return features (num_frames, 80) with bursts, at a random level of up to 60 dB below that of speech."""
    bursts = 4 * (torch.arange(num_frames) // 40 % 2)[:, None]
    return torch.randn(num_frames, 80) * 2 - 8 + bursts - 14 * torch.rand(())


@pytest.mark.parametrize("context_size", [1, 2])
@torch.inference_mode()
def test_predictor_and_joiner_equal_the_model(context_size):
    model = build_model(ModelConfig(encoder_type="zipformer", zipformer="tiny", context_size=context_size), 20).eval()
    y = torch.tensor([[-1, 0], [0, 3], [7, 19], [19, 1]])[:, -context_size:]
    projected = model.joiner.decoder_proj(model.decoder(y, need_pad=False))[:, 0]
    torch.testing.assert_close(run_graph(predictor_graph(model), y), [projected])
    frames = torch.randn(4, projected.size(1))
    logits = model.joiner(frames, projected, project_input=False)
    torch.testing.assert_close(run_graph(joiner_graph(model), frames, projected), [logits])


@torch.inference_mode()
def test_precisions():
    model, graph = model_and_graph("zipformer")
    inputs = [torch.randn(2, model.chunk_window, 80) * 2 - 8, *zero_states(model, 2)]
    converted = {precision: convert(graph, precision) for precision in PRECISIONS}
    outputs = {precision: run_graph(converted[precision], *inputs) for precision in PRECISIONS}
    for precision, tolerance in {"float16": 0.1, "int8": 3.0}.items():
        assert [tensor.dtype for tensor in outputs[precision]] == [tensor.dtype for tensor in outputs["float32"]]
        assert 0 < float((outputs[precision][0] - outputs["float32"][0]).abs().max()) < tolerance
        assert len(converted[precision]) < len(graph)
    weights = {
        precision: {
            tensor.data_type for tensor in onnx.load_from_string(data).graph.initializer if len(tensor.dims) > 1
        }
        for precision, data in converted.items()
    }
    assert onnx.TensorProto.FLOAT not in weights["float16"] and onnx.TensorProto.INT8 in weights["int8"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(TEXTS, VOCAB_SIZE, tmp_path_factory.mktemp("tokens")))


def make_trained(kind, tokenizer, roots=("encoder_embed", "encoder", "decoder"), level_norm="none"):
    """Return a model with random masks of two languages that decodes noise to many different tokens."""
    torch.manual_seed(1)
    model = make_model(kind, VOCAB_SIZE)
    pathways = FoldedPathways(model, random_masks(model, ["en", "fr"], roots))
    spread_tokens(pathways, never=(UNKNOWN,))
    return TrainedModel(model, pathways, tokenizer, DataConfig(level_norm=level_norm), "", "")


def noise(count):
    """Return bursts of noise of different lengths."""
    generator = torch.Generator().manual_seed(2)
    lengths = [9000 + 1370 * index for index in range(count)]
    bursts = [torch.randn(n, generator=generator) * 0.1 * (torch.arange(n) // 1600 % 3) for n in lengths]
    return [burst / burst.abs().max() for burst in bursts]


@pytest.mark.parametrize("kind", ["emformer-memory", "zipformer", "zipformer-language"])
def test_sherpa_decodes_the_same_tokens(kind, tokenizer, tmp_path):
    """In every pathway, by both searches; hotwords change the result of the second."""
    trained = make_trained(kind, tokenizer)
    exported = export_sherpa(trained.pathways, tokenizer, ["en", "fr"], tmp_path)
    utterances = [pad_for_sherpa(trained.model, samples) for samples in noise(20)]
    samples = [utterance.numpy() for utterance in utterances]
    tokens = {}
    for language in ("en", "fr"):
        for method, search in {"greedy_search": GreedySearch, "modified_beam_search": ModifiedBeamSearch}.items():
            expected = decode_as_sherpa(trained, search(trained.model), language, utterances)
            results = decode_with_sherpa(exported[language]["float32"], samples, decoding_method=method)
            assert count_equal(results, expected) == 20
            tokens[language, method] = [result.tokens for result in results]
            assert len({token for result in results for token in result.tokens}) > 2
    assert tokens["en", "greedy_search"] != tokens["fr", "greedy_search"]
    (tmp_path / "hotwords.txt").write_text("\n".join(" ".join(TEXTS).split()), encoding="utf-8")
    options = {"hotwords_file": str(tmp_path / "hotwords.txt"), "hotwords_score": 50.0}
    results = decode_with_sherpa(exported["fr"]["float32"], samples, decoding_method="modified_beam_search", **options)
    assert [result.tokens for result in results] != tokens["fr", "modified_beam_search"]


def test_program_in_the_readme_decodes_a_file(tokenizer, tmp_path):
    (program,) = re.findall(r"```python\n(import numpy.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    trained = make_trained("emformer", tokenizer)
    exported = export_sherpa(trained.pathways, tokenizer, ["en", "fr"], tmp_path / "sherpa-onnx")
    soundfile.write(tmp_path / "speech.flac", noise(1)[0].numpy(), 16000)
    samples, _ = soundfile.read(tmp_path / "speech.flac", dtype="float32")
    padded = np.concatenate([samples, np.zeros(16000, np.float32)])
    (expected,) = decode_with_sherpa(exported["fr"]["float32"], [padded])
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert process.stdout == f"{expected.text}\n" and expected.text


@pytest.mark.parametrize("kind", ["emformer-memory", "zipformer"])
def test_sherpa_normalizes_the_level(kind, tokenizer, tmp_path):
    """sherpa-onnx decodes utterances of any level to the same tokens as the streaming decoder."""
    trained = make_trained(kind, tokenizer, level_norm="running-max")
    exported = export_sherpa(trained.pathways, tokenizer, ["en"], tmp_path, level_norm="running-max")
    bursts = noise(12)
    levels = [bursts[index] * 10 ** (-index / 5) for index in range(12)]
    utterances = [pad_for_sherpa(trained.model, samples) for samples in levels]
    expected = decode_as_sherpa(trained, GreedySearch(trained.model), "en", utterances)
    results = decode_with_sherpa(exported["en"]["float32"], [utterance.numpy() for utterance in utterances])
    assert count_equal(results, expected) == 12
    assert len({token for result in results for token in result.tokens}) > 2
    unnormalized = replace(trained, data_config=DataConfig(level_norm="none"))
    assert decode_as_sherpa(unnormalized, GreedySearch(trained.model), "en", utterances) != expected


def test_what_no_mask_touches_is_written_once(tokenizer, tmp_path):
    trained = make_trained("emformer", tokenizer)
    exported = export_sherpa(trained.pathways, tokenizer, ["fr", "en"], tmp_path / "predictor", PRECISIONS)
    assert len({files["int8"].decoder for files in exported.values()}) == 2
    trained = make_trained("emformer", tokenizer, ("encoder",))
    exported = export_sherpa(trained.pathways, tokenizer, ["fr"], tmp_path / "encoder", ("float32", "int8"))
    files = sorted(str(path.relative_to(tmp_path / "encoder")) for path in (tmp_path / "encoder").glob("**/*.*"))
    assert files == [
        *("bpe.model", "bpe.vocab", "decoder.int8.onnx", "decoder.onnx", "fr/encoder.int8.onnx", "fr/encoder.onnx"),
        *("joiner.int8.onnx", "joiner.onnx", "sherpa-onnx.json", "tokens.txt"),
    ]
    index = json.loads((tmp_path / "encoder" / INDEX_FILE).read_text())
    assert index["languages"]["fr"]["int8"]["encoder"] == "fr/encoder.int8.onnx"
    assert index["recognizer"]["high_freq"] == -400.0
    same = trained.pathways.masks
    for name in same.names:
        same.set_mask(name, "fr", same.mask(name, "en"))
    shared = export_sherpa(FoldedPathways(trained.model, same), tokenizer, ["en", "fr"], tmp_path / "shared")
    dense = export_sherpa(FoldedPathways(trained.model, None), tokenizer, ["en", "fr"], tmp_path / "dense")
    for group, path in ((shared, "shared/en/encoder.onnx"), (dense, "dense/encoder.onnx")):
        assert {by_precision["float32"].encoder for by_precision in group.values()} == {tmp_path / path}


@torch.inference_mode()
def test_a_dense_model_with_the_language_as_input_has_an_encoder_per_language(tokenizer, tmp_path):
    model = make_model("emformer-language", VOCAB_SIZE)
    pathways = FoldedPathways(model, None)
    exported = export_sherpa(pathways, tokenizer, ["en", "fr"], tmp_path)
    x, outputs = torch.randn(2, model.chunk_window, 80) * 2 - 8, []
    for language in ("en", "fr"):
        files = exported[language]["float32"]
        assert files.encoder == tmp_path / language / "encoder.onnx" and files.decoder == tmp_path / "decoder.onnx"
        outputs.append(run_graph(files.encoder.read_bytes(), x, *zero_states(model, 2))[0])
        with pathways.activate(language):
            frames, _, _ = model.stream(x, torch.full((2,), model.chunk_window), model.init_states(2))
        torch.testing.assert_close(outputs[-1], model.joiner.encoder_proj(frames), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(*outputs, atol=0.1)


def test_masked_weights_replace_the_weights(tokenizer):
    trained = make_trained("emformer", tokenizer)
    masked = language_model(trained.pathways, "fr").state_dict()
    for name, weight in trained.model.state_dict().items():
        expected = weight * trained.masks.mask(name, "fr") if name in trained.masks.names else weight
        assert torch.equal(masked[name], expected)


def test_metadata_of_the_encoder():
    def metadata(graph):
        return {entry.key: entry.value for entry in onnx.load_from_string(graph).metadata_props}

    emformer = metadata(encoder_graph(make_model("emformer-memory")))
    assert emformer["model_type"] == "lstm" and "Emformer in the container" in emformer["comment"]
    zipformer = make_model("zipformer")
    zipformer.encoder.set_context(32, 64)
    expected = {
        "model_type": "zipformer2",
        "decode_chunk_len": "64",
        "T": "77",
        "num_encoder_layers": "1,1",
        "encoder_dims": "16,24",
        "cnn_module_kernels": "31,31",
        "left_context_len": "64,32",
        "query_head_dims": "32,32",
        "value_head_dims": "12,12",
        "num_heads": "4,4",
    }
    assert metadata(encoder_graph(zipformer)).items() >= expected.items()
    assert metadata(predictor_graph(zipformer)).items() >= {"context_size": "2", "vocab_size": "20"}.items()


def test_models_that_sherpa_cannot_run_are_rejected():
    stateless = build_model(ModelConfig(left_context_length=0, num_encoder_layers=1, encoder_dim=8, nhead=2), 20)
    with pytest.raises(ValueError, match="no left context, memory or convolution"):
        encoder_graph(stateless)
    wide = build_model(ModelConfig(encoder_type="zipformer", zipformer="tiny", front_end_channels="4,4,130"), 20)
    with pytest.raises(ValueError, match="130 channels, and sherpa-onnx supports at most 128"):
        encoder_graph(wide)


def test_failure_of_sherpa_is_reported(tokenizer, tmp_path):
    trained = make_trained("emformer", tokenizer)
    files = export_sherpa(trained.pathways, tokenizer, ["en"], tmp_path)["en"]["float32"]
    model = onnx.load(files.encoder)
    del model.metadata_props[:]
    onnx.save(model, files.encoder)
    with pytest.raises(SherpaError, match=r"sherpa-onnx failed on .*encoder.onnx \(exit status"):
        decode_with_sherpa(files, [np.zeros(16000, np.float32)])


@pytest.mark.parametrize("level_norm", get_args(LevelNorm))
def test_command_exports_and_compares(level_norm, tmp_path, capsys):
    make_experiment(tmp_path)
    path = tmp_path / "exp" / "checkpoint-5.pt"
    checkpoint = checkpoints.read(path)
    checkpoint["config"]["data"]["level_norm"] = level_norm
    checkpoints.save(checkpoint, path)
    masks = write_complementary_masks(tmp_path / "exp")
    config = Config(exp_dir=tmp_path / "exp", output_dir=tmp_path / "out", languages="nl", check_utterances=3)
    run(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("nl float32: encoder 0.0")
    rows = [line.split("│") for line in lines if "greedy_search" in line or "modified_beam_search" in line]
    assert [row[4].strip() for row in rows] == ["3 of 3"] * 2
    assert [row[5].strip() == row[6].strip() for row in rows] == [True] * 2
    assert masks.languages == ("en", "nl")
    properties = onnx.load(tmp_path / "out" / "nl" / "encoder.onnx").metadata_props
    assert {entry.key: entry.value for entry in properties}["level_norm"] == level_norm
    with pytest.raises(ValueError, match="no pathway for language 'fr'"):
        run(replace(config, languages=("fr",)))


def test_other_tokens_are_an_error():
    same = Comparison("en", "greedy_search", "float32", 20, 20, 5.0, 5.0)
    check_equal([same, Comparison("en", "greedy_search", "int8", 20, 3, 6.0, 5.0)])
    with pytest.raises(ValueError, match=r"in 1 of 20 \(fr, greedy_search\) utterances"):
        check_equal([same, Comparison("fr", "greedy_search", "float32", 20, 19, 5.0, 5.0)])
