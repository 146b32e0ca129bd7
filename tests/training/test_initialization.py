"""Initial weights of trainings and mask searches: --init-from."""

import json
import pickle
from dataclasses import replace

import pytest
import tiny_run
import torch
from public_numbers import parameter_shapes
from safetensors.torch import save_file
from zipformer_reference import load

from icefall_pathways.experiment import checkpoints, icefall_checkpoints, layout
from icefall_pathways.experiment.icefall_checkpoints import read_weights
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import VOCABULARY_LAYERS, build_model
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig, MaskSearchConfig, PruningConfig
from icefall_pathways.training.initialization import (
    InitialCheckpoint,
    build_initial_model,
    compare_weights,
    read_initial_checkpoint,
    with_architecture,
)

VOCAB_SIZE = 20


def write_icefall_checkpoint(model, path, **others):
    """Write a checkpoint in the format of icefall."""
    average = {name: value.double() + 1 for name, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_avg": average, "batch_idx_train": 7, "lr": 0.5} | others, path)
    return path


def init_config(corpus, path, model=tiny_run.ZIPFORMER, **options):
    config = tiny_run.config(corpus, path.parent / "exp", init_from=path, ctc_loss_scale=0.0, **options)
    return replace(config, model=model)


def initial_model(config):
    return build_initial_model(config, read_initial_checkpoint(config.training))


@torch.no_grad()
def test_weights_of_the_public_implementation_give_its_outputs(tmp_path):
    """They are read from an icefall checkpoint into a model of this project."""
    reference = load("causal", torch.float32)
    torch.save({"model": reference.numbers["state_dict"], "epoch": 1}, tmp_path / "epoch-1.pt")
    weights = read_weights(tmp_path / "epoch-1.pt")
    for parameter in reference.model.parameters():
        parameter.zero_()
    comparison = compare_weights("epoch-1.pt", weights, reference.model)
    assert comparison.fits and len(comparison.matched) == 233
    reference.model.load_state_dict(weights)
    run, expected = next(iter(reference.numbers["runs"].items()))
    out, _ = reference.encode(reference.embed(reference.numbers["x"]), run)
    torch.testing.assert_close(out[:, ::2], expected["out"], atol=1e-4, rtol=0)


def test_default_zipformer_matches_the_parameters_of_the_default_icefall_zipformer():
    """Names and shapes are equal."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in parameter_shapes("default")}
    comparison = compare_weights("default", weights, build_model(ModelConfig(encoder_type="zipformer"), 500))
    assert comparison.fits and len(comparison.matched) == 839
    other = compare_weights("default", weights, build_model(ModelConfig(encoder_type="zipformer"), 300))
    assert len(other.mismatched) == 7 and not other.missing and not other.extra
    assert {name.rpartition(".")[0] for name in other.mismatched} == set(VOCABULARY_LAYERS) - {"ctc_output"}
    assert other.mismatched["joiner.output_linear.weight"] == ([500, 512], [300, 512])


@pytest.mark.parametrize("key", ["model", "model_avg"])
@pytest.mark.parametrize("kind", ["icefall", "bare", "safetensors"])
def test_weights_of_every_file_format_are_loaded(corpus, tmp_path, kind, key):
    source = build_model(tiny_run.ZIPFORMER, VOCAB_SIZE)
    path = tmp_path / {"icefall": "epoch-1.pt", "bare": "bare.pt", "safetensors": "a.safetensors"}[kind]
    if kind == "icefall":
        write_icefall_checkpoint(source, path)
    elif kind == "bare":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    config = init_config(corpus, path, init_key=key)
    if kind == "bare" and key == "model_avg":
        with pytest.raises(ValueError, match="no weights under 'model_avg'"):
            initial_model(config)
        return
    model, comparison = initial_model(config)
    shift = 1 if (kind, key) == ("icefall", "model_avg") else 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[name] + shift)
    assert comparison.fits and str(comparison) == f"{path}: {len(source.state_dict())} tensors match"


def test_other_tokens_are_an_error_unless_the_vocabulary_layers_are_reinitialized(corpus, tmp_path):
    path = write_icefall_checkpoint(build_model(tiny_run.ZIPFORMER, 31), tmp_path / "epoch-1.pt")
    with pytest.raises(ValueError, match="--reinit-vocab 1") as error:
        initial_model(init_config(corpus, path))
    assert "joiner.output_linear.bias" in str(error.value) and "31 " in str(error.value)
    torch.manual_seed(3)
    model, comparison = initial_model(init_config(corpus, path, reinit_vocab=True))
    torch.manual_seed(3)
    fresh, source = build_model(tiny_run.ZIPFORMER, VOCAB_SIZE).state_dict(), read_weights(path)
    assert len(comparison.reinitialized) == 7 and comparison.fits
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in comparison.reinitialized else source[name])


def test_other_architecture_is_an_error_unless_partial_loading_is_requested(corpus, tmp_path):
    source = build_model(tiny_run.ZIPFORMER, VOCAB_SIZE)
    state = source.state_dict()
    missing = "encoder.encoders.0.layers.0.norm.bias"
    del state[missing]
    state["something.else"] = torch.ones(2, 3)
    state["encoder_embed.out.bias"] = torch.ones(5)
    torch.save({"model": state}, tmp_path / "epoch-1.pt")
    with pytest.raises(ValueError, match="--init-partial 1") as error:
        initial_model(init_config(corpus, tmp_path / "epoch-1.pt"))
    rows = [line.split() for line in str(error.value).splitlines()]
    assert ["encoder_embed.out.bias", "5", "16"] in rows
    assert [missing, "missing", "present"] in rows and ["something.else", "present", "missing"] in rows
    model, comparison = initial_model(init_config(corpus, tmp_path / "epoch-1.pt", init_partial=True))
    assert len(comparison.matched) == len(source.state_dict()) - 2
    assert torch.equal(model.encoder_embed.out.weight, source.encoder_embed.out.weight)


def test_weights_without_a_matching_tensor_are_an_error_even_for_partial_loading(corpus, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="0 tensors match"):
        initial_model(init_config(corpus, tmp_path / "a.pt", init_partial=True))


def test_icefall_checkpoint_is_pruned_and_trained_into_pathways(corpus, tmp_path, capsys):
    """The architecture comes from the command line first, and from the checkpoint of the training afterwards."""
    source = build_model(tiny_run.ZIPFORMER, 31)
    path = write_icefall_checkpoint(source, tmp_path / "epoch-1.pt")
    options = init_config(corpus, path, reinit_vocab=True, valid_interval=8, num_updates=1)
    pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=1)
    data = replace(options.data, languages="en")
    masks_dir = tmp_path / "masks"
    runs.find_masks(
        MaskSearchConfig(pruning, replace(options.training, exp_dir=masks_dir, num_updates=0), data, options.model)
    )
    assert f"Starting from {path}:" in capsys.readouterr().out
    masks = PathwayMasks.load(masks_dir / "masks.safetensors")
    assert masks.header.source == checkpoints.file_hash(path)
    masks.check(build_model(tiny_run.ZIPFORMER, VOCAB_SIZE), ["en"])
    training = replace(options.training, masks=masks_dir / "masks.safetensors")
    runs.train(replace(options, training=training, data=data))
    record = json.loads((options.training.exp_dir / "init-from.json").read_text())
    assert record["source"] == str(path) and len(record["matched"]) + len(record["reinitialized"]) == len(
        source.state_dict()
    )
    trained = checkpoints.newest(options.training.exp_dir)[1]["model"]
    unused = masks.codes["encoder_embed.out.weight"] == 0
    assert torch.equal(trained["encoder_embed.out.weight"][unused], source.encoder_embed.out.weight[unused])
    again = init_config(corpus, options.training.exp_dir, ModelConfig())
    initial = read_initial_checkpoint(again.training)
    assert with_architecture(again, initial).model.encoder_type == "zipformer"


@pytest.fixture
def reads(monkeypatch):
    """Record the checkpoints whose tensors are read, in order."""
    paths = []

    def count(module, name):
        read = getattr(module, name)

        def counting_read(path, *args):
            paths.append(path)
            return read(path, *args)

        monkeypatch.setattr(module, name, counting_read)

    count(checkpoints, "read")
    count(icefall_checkpoints, "read_weights")
    return paths


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    """Train a dense model and return its folder, with both kinds of checkpoints."""
    exp_dir = tmp_path_factory.mktemp("dense")
    config = tiny_run.config(corpus, exp_dir, num_updates=1, save_every_n=1, valid_interval=1)
    runs.train(config)
    (path,) = layout.batch_checkpoints(exp_dir)
    layout.epoch_checkpoint(exp_dir, 1).write_bytes(path.read_bytes())
    return exp_dir


def test_training_reads_the_initial_checkpoint_once(corpus, dense, tmp_path, reads):
    pruning = JointPruningConfig("gradual", prune_every=1, prune_end=1)  # its masks record the hash of the file
    config = tiny_run.config(corpus, tmp_path, init_from=dense, num_updates=1, valid_interval=1, valid_wer_cuts=0)
    runs.train(replace(config, pruning=pruning))
    assert reads == [dense / "epoch-1.pt"]


@pytest.mark.parametrize("source", ["own", "icefall"])
def test_mask_search_of_several_languages_reads_the_initial_checkpoint_once(corpus, dense, tmp_path, reads, source):
    init_from, expected = dense, dense / "epoch-1.pt"
    if source == "icefall":
        model = build_model(tiny_run.MODEL, VOCAB_SIZE)
        init_from = expected = write_icefall_checkpoint(model, tmp_path / "epoch-9.pt")
    pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=1)
    options = {"init_from": init_from, "valid_wer_cuts": 0, "ctc_loss_scale": 0.3 if source == "own" else 0.0}
    search = tiny_run.search(corpus, tmp_path / "search", pruning, **options)
    runs.find_masks(replace(search, model=tiny_run.MODEL))
    assert reads == [expected]
    masks = PathwayMasks.load(tmp_path / "search" / layout.MASKS_FILE)
    assert masks.languages == ("en", "fr", "it") and masks.header.source == checkpoints.file_hash(expected)


def test_initial_average_without_its_checkpoints_is_an_error(dense):
    with pytest.raises(ValueError, match=r"--init-avg 3 needs 3 checkpoints up to .*: found 1"):
        InitialCheckpoint(dense, avg=3)


@pytest.mark.parametrize("avg", [None, 1])
def test_pickled_initial_checkpoint_reads_the_same_weights_again(dense, reads, avg):
    initial = InitialCheckpoint(dense, avg=avg)
    data = pickle.dumps(initial)
    assert len(data) < 20_000  # options, no weights
    copy = pickle.loads(data)
    for name, value in initial.weights.items():
        assert torch.equal(copy.weights[name], value)
    assert reads == [dense / "epoch-1.pt"] * 2
    assert copy.config == initial.config and copy.file_hash == initial.file_hash
