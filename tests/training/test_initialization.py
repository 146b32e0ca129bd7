"""What a training starts from: --init-from."""

import json
from dataclasses import replace

import pytest
import tiny_run
import torch
from public_numbers import parameter_shapes
from safetensors.torch import save_file
from zipformer_reference import load

from icefall_pathways.experiment import checkpoints
from icefall_pathways.experiment.icefall_checkpoints import read_weights
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import VOCABULARY_LAYERS, build_model
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import MaskSearchConfig, PruningConfig
from icefall_pathways.training.initialization import compare, starting_model

VOCAB_SIZE = 20
ZIPFORMER = ModelConfig(encoder_type="zipformer", zipformer="tiny")


def public(model, path, **others):
    """A checkpoint as icefall would write it."""
    average = {name: value.double() + 1 for name, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_avg": average, "batch_idx_train": 7, "lr": 0.5} | others, path)
    return path


def start(corpus, path, model=ZIPFORMER, **options):
    config = tiny_run.config(corpus, path.parent / "exp", init_from=path, ctc_loss_scale=0.0, **options)
    return replace(config, model=model)


@torch.no_grad()
def test_public_weights_give_the_public_outputs(tmp_path):
    """Through a file of icefall's kind into a model of ours."""
    reference = load("causal", torch.float32)
    torch.save({"model": reference.numbers["state_dict"], "epoch": 1}, tmp_path / "epoch-1.pt")
    weights = read_weights(tmp_path / "epoch-1.pt")
    for parameter in reference.model.parameters():
        parameter.zero_()
    comparison = compare("epoch-1.pt", weights, reference.model)
    assert comparison.fits and len(comparison.matched) == 233
    reference.model.load_state_dict(weights)
    run, expected = next(iter(reference.numbers["runs"].items()))
    out, _ = reference.encode(reference.embed(reference.numbers["x"]), run)
    torch.testing.assert_close(out[:, ::2], expected["out"], atol=1e-4, rtol=0)


def test_the_default_zipformer_takes_a_default_icefall_checkpoint():
    """Name by name and shape by shape."""
    weights = {name: torch.empty(shape, device="meta") for name, shape in parameter_shapes("default")}
    comparison = compare("default", weights, build_model(ModelConfig(encoder_type="zipformer"), 500))
    assert comparison.fits and len(comparison.matched) == 839
    other = compare("default", weights, build_model(ModelConfig(encoder_type="zipformer"), 300))
    assert len(other.differing) == 7 and not other.missing and not other.extra
    assert {name.rpartition(".")[0] for name in other.differing} == set(VOCABULARY_LAYERS) - {"ctc_output"}
    assert other.differing["joiner.output_linear.weight"] == ([500, 512], [300, 512])


@pytest.mark.parametrize("key", ["model", "model_avg"])
@pytest.mark.parametrize("kind", ["icefall", "bare", "safetensors"])
def test_every_kind_of_file_is_taken(corpus, tmp_path, kind, key):
    theirs = build_model(ZIPFORMER, VOCAB_SIZE)
    path = tmp_path / {"icefall": "epoch-1.pt", "bare": "bare.pt", "safetensors": "a.safetensors"}[kind]
    if kind == "icefall":
        public(theirs, path)
    elif kind == "bare":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    config = start(corpus, path, init_key=key)
    if kind == "bare" and key == "model_avg":
        with pytest.raises(ValueError, match="no weights under 'model_avg'"):
            starting_model(config)
        return
    model, comparison = starting_model(config)
    shift = 1 if (kind, key) == ("icefall", "model_avg") else 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name] + shift)
    assert comparison.fits and str(comparison) == f"{path}: {len(theirs.state_dict())} tensors match"


def test_other_tokens_stop_with_a_table_or_begin_anew(corpus, tmp_path):
    path = public(build_model(ZIPFORMER, 31), tmp_path / "epoch-1.pt")
    with pytest.raises(ValueError, match="--reinit-vocab 1") as error:
        starting_model(start(corpus, path))
    assert "joiner.output_linear.bias" in str(error.value) and "31 " in str(error.value)
    torch.manual_seed(3)
    model, comparison = starting_model(start(corpus, path, reinit_vocab=True))
    torch.manual_seed(3)
    fresh, theirs = build_model(ZIPFORMER, VOCAB_SIZE).state_dict(), read_weights(path)
    assert len(comparison.renewed) == 7 and comparison.fits
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in comparison.renewed else theirs[name])


def test_another_architecture_stops_with_a_table_unless_asked(corpus, tmp_path):
    theirs = build_model(ZIPFORMER, VOCAB_SIZE)
    state = theirs.state_dict()
    missing = "encoder.encoders.0.layers.0.norm.bias"
    del state[missing]
    state["something.else"] = torch.ones(2, 3)
    state["encoder_embed.out.bias"] = torch.ones(5)
    torch.save({"model": state}, tmp_path / "epoch-1.pt")
    with pytest.raises(ValueError, match="--init-partial 1") as error:
        starting_model(start(corpus, tmp_path / "epoch-1.pt"))
    rows = [line.split() for line in str(error.value).splitlines()]
    assert ["encoder_embed.out.bias", "5", "16"] in rows
    assert [missing, "missing", "there"] in rows and ["something.else", "there", "missing"] in rows
    model, comparison = starting_model(start(corpus, tmp_path / "epoch-1.pt", init_partial=True))
    assert len(comparison.matched) == len(theirs.state_dict()) - 2
    assert torch.equal(model.encoder_embed.out.weight, theirs.encoder_embed.out.weight)


def test_nothing_in_common_is_an_error_even_if_asked(corpus, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="0 tensors match"):
        starting_model(start(corpus, tmp_path / "a.pt", init_partial=True))


def test_a_public_model_is_pruned_and_trained_into_pathways(corpus, tmp_path, capsys):
    """The architecture comes from the command line first, and from our own checkpoint from then on."""
    theirs = build_model(ZIPFORMER, 31)
    path = public(theirs, tmp_path / "epoch-1.pt")
    options = start(corpus, path, reinit_vocab=True, valid_interval=8, num_updates=1)
    pruning = PruningConfig(sparsity=0.5, prune_rounds=1, updates_per_round=1)
    data = replace(options.data, languages="en")
    masks_dir = tmp_path / "masks"
    runs.find_masks(
        MaskSearchConfig(pruning, replace(options.training, exp_dir=masks_dir, num_updates=0), data, options.model)
    )
    assert f"Starting from {path}:" in capsys.readouterr().out
    masks = PathwayMasks.load(masks_dir / "masks.safetensors")
    assert masks.header.source == checkpoints.file_hash(path)
    masks.check(build_model(ZIPFORMER, VOCAB_SIZE), ["en"])
    training = replace(options.training, masks=masks_dir / "masks.safetensors")
    runs.train(replace(options, training=training, data=data))
    told = json.loads((options.training.exp_dir / "init-from.json").read_text())
    assert told["source"] == str(path) and len(told["matched"]) + len(told["renewed"]) == len(theirs.state_dict())
    trained = checkpoints.newest(options.training.exp_dir)[1]["model"]
    unused = masks.codes["encoder_embed.out.weight"] == 0
    assert torch.equal(trained["encoder_embed.out.weight"][unused], theirs.encoder_embed.out.weight[unused])
    again = start(corpus, options.training.exp_dir, ModelConfig())
    assert runs.with_architecture(again).model.encoder_type == "zipformer"
