"""Averages of weights respect the masks: updates of a language do not change entries outside its mask."""

import pytest
import tiny_run
import torch
from drawn_masks import random_masks

from icefall_pathways.data.datamodule import SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.config import DecodeConfig
from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.experiment import checkpoints
from icefall_pathways.models.transducer import build_model
from icefall_pathways.training import runs

LANGUAGES = ["en", "fr", "it"]
UPDATES = 8


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """Train with a checkpoint per update; return the folder, initial weights, masks, and languages of the updates."""
    folder = tmp_path_factory.mktemp("averages")
    runs.train(tiny_run.config(corpus, folder / "dense", num_updates=1))
    start = checkpoints.read(folder / "dense" / "checkpoint-1.pt")["model"]
    masks = random_masks(build_model(tiny_run.MODEL, 20), LANGUAGES, runs.PRUNE_SCOPES["encoder"], 0.4)
    masks.save(folder / "masks.safetensors")
    config = tiny_run.config(
        corpus,
        folder / "exp",
        init_from=folder / "dense",
        masks=folder / "masks.safetensors",
        num_updates=UPDATES,
        save_every_n=1,
        valid_interval=UPDATES,
    )
    runs.train(config)
    data = SpeechDataModule(config.data, Tokenizer(config.training.bpe_model))
    languages = [batch.language for batch in data.train_batches(0, UPDATES, config.training.seed)]
    return config.training.exp_dir, start, masks, languages


def averaged(exp_dir, update, avg, use_averaged_model):
    model = checkpoints.load_model(exp_dir, 0, update, avg, use_averaged_model).model
    return model.state_dict()


@pytest.mark.parametrize("use_averaged_model", [True, False])
def test_entries_outside_all_masks_keep_their_value(run, use_averaged_model):
    exp_dir, start, masks, _ = run
    weights = averaged(exp_dir, UPDATES, 3, use_averaged_model)
    running = checkpoints.read(exp_dir / f"checkpoint-{UPDATES}.pt")["model_avg"]
    for name, code in masks.codes.items():
        unused = code == 0
        assert unused.any()
        assert torch.equal(weights[name][unused], start[name][unused])
        assert torch.equal(running[name][unused], start[name][unused].double())


@pytest.mark.parametrize("use_averaged_model", [True, False])
@pytest.mark.parametrize("avg", [1, 3])
def test_averages_keep_entries_that_only_untrained_languages_use(run, avg, use_averaged_model):
    """Entries that no language of the averaged updates uses have their previous value as mean."""
    exp_dir, _, masks, languages = run
    kept = moved = 0
    for end in (4, UPDATES):
        trained = languages[end - avg : end]
        before = checkpoints.read(exp_dir / f"checkpoint-{end - avg}.pt")["model"]
        after = averaged(exp_dir, end, avg, use_averaged_model)
        for name in masks.names:
            used = torch.stack([masks.mask(name, language) for language in trained]).any(0)
            # Computed from two running means in float64, so not bitwise equal.
            torch.testing.assert_close(after[name][~used], before[name][~used], rtol=1e-6, atol=1e-7)
            kept += int((~used & (masks.codes[name] != 0)).sum())
            moved += int((after[name] != before[name])[used].sum())
    assert kept > 500 and moved > 500


def test_decoding_uses_the_average_that_its_options_define(run):
    exp_dir = run[0]
    for avg, use_averaged_model in ((1, True), (3, False)):
        config = DecodeConfig(exp_dir=exp_dir, iter=UPDATES, avg=avg, use_averaged_model=use_averaged_model)
        weights = load_trained_model(config).model.state_dict()
        expected = averaged(exp_dir, UPDATES, avg, use_averaged_model)
        assert all(torch.equal(value, expected[name]) for name, value in weights.items())
