"""Training with the language as an input: dense, LAP and pathways."""

from dataclasses import replace
from itertools import pairwise

import pytest
import tiny_run
import torch
from ranks import fork_ranks
from test_adding_a_language import extend, outputs, same_bits
from test_resuming import assert_same_checkpoints

from icefall_pathways.experiment import checkpoints
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs

LANGUAGES = ["en", "fr", "it"]
VECTOR = "encoder_embed.out.vector_"


def language_config(corpus, exp_dir, model=tiny_run.MODEL, **options):
    config = tiny_run.config(corpus, exp_dir, **options)
    return replace(config, model=replace(model, language_input=True))


def write_masks(config, path, languages, shared=False):
    """Write random masks of the encoder, one for all languages if `shared`."""
    masks = PathwayMasks.dense(build_model(config.model, 20, languages), languages, runs.PRUNE_SCOPES["encoder"])
    for name in masks.names:
        for group in [languages] if shared else [[language] for language in languages]:
            masks.set_mask(name, group, torch.rand(masks.codes[name].shape) < 0.5)
    masks.save(path)
    return path


def vectors(state):
    """Return each language's vector and its optimizer state."""
    named = dict(state.model.named_parameters())
    parameters = {language: named[VECTOR + language] for language in LANGUAGES}
    return {
        language: [
            parameter.detach().clone(),
            *(v.clone() for v in state.optimizer.state[parameter].values() if v.dim()),
        ]
        for language, parameter in parameters.items()
    }


@pytest.mark.parametrize(
    ("model", "masks"),
    [
        *((tiny_run.MODEL, masks) for masks in ("dense", "lap", "pathways")),
        *((tiny_run.ZIPFORMER, masks) for masks in ("dense", "pathways")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.encoder_type,
)
def test_an_update_changes_the_vector_of_its_language_only(corpus, tmp_path, model, masks):
    config = language_config(corpus, tmp_path / "exp", model, valid_interval=100)
    if masks != "dense":
        path = write_masks(config, tmp_path / "given.safetensors", LANGUAGES, shared=masks == "lap")
        config = replace(config, training=replace(config.training, masks=path))
    recorder = tiny_run.UpdateRecorder(lambda state, result: (result.batches[0].language, vectors(state)))
    runs.train(config, [recorder])
    records = [recorder.values[update] for update in range(1, 9)]
    assert {language for language, _ in records} == set(LANGUAGES)
    changed = set()
    for (_, before), (updated, after) in pairwise(records):
        for language in LANGUAGES:
            if language != updated:
                assert same_bits(before[language], after[language])
            elif not torch.equal(before[language][0], after[language][0]):
                changed.add(language)
    assert changed == {language for language, _ in records[1:]}


def test_a_killed_training_resumes_with_the_same_bits(corpus, tmp_path):
    runs.train(language_config(corpus, tmp_path / "uninterrupted"))
    killed = language_config(corpus, tmp_path / "killed")
    tiny_run.train_until(killed, 6)
    runs.train(killed)
    assert_same_checkpoints(tmp_path / "uninterrupted", tmp_path / "killed", 8)


def test_several_ranks_equal_gradient_accumulation_on_one(corpus, tmp_path):
    for world_size in (1, 2):
        options = {"num_updates": 3, "valid_interval": 100, "save_every_n": 3}
        config = language_config(corpus, tmp_path / f"exp-{world_size}", **options)
        training = replace(config.training, world_size=world_size, accum_grad=2 // world_size)
        config = replace(config, training=training, data=replace(config.data, max_duration=4.0))
        fork_ranks(runs.train_rank, world_size, tmp_path / f"ranks-{world_size}", config)
    single, several = (checkpoints.read(tmp_path / f"exp-{n}" / "checkpoint-3.pt")["model"] for n in (1, 2))
    for name, value in single.items():
        torch.testing.assert_close(several[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pathways(corpus, tmp_path_factory):
    """Return the folder of pathways of en and fr with the language as an input."""
    exp_dir = tmp_path_factory.mktemp("exp") / "pathways"
    config = language_config(corpus, exp_dir, languages="en fr", num_updates=6)
    masks = write_masks(config, exp_dir.parent / "given.safetensors", ["en", "fr"])
    runs.train(replace(config, training=replace(config.training, masks=masks)))
    return exp_dir


def test_an_added_language_has_its_own_vector_and_the_others_the_same_bits(corpus, pathways, tmp_path):
    runs.find_masks(extend(corpus, pathways, tmp_path / "search", prune_scope="encoder"))
    masks = tmp_path / "search" / "masks.safetensors"
    before = {language: outputs(pathways, language) for language in ("en", "fr")}
    options = {"freeze_languages": "en fr", "weight_decay": 0.5, "num_updates": 8, "base_lr": 0.05}
    recorder = tiny_run.UpdateRecorder(lambda state, _: state.model.encoder_embed.out.vector_it.detach().clone())
    config = tiny_run.config(corpus, tmp_path / "more", "it", init_from=pathways, init_avg=1, masks=masks, **options)
    runs.train(config, [recorder])
    for language, expected in before.items():
        assert same_bits(outputs(tmp_path / "more", language), expected)
    assert not torch.equal(recorder.values[1], recorder.values[8])


def test_vectors_are_added_to_a_model_without_them(corpus, tmp_path):
    """The checkpoint of an earlier version does not have the option."""
    runs.train(tiny_run.config(corpus, tmp_path / "dense", num_updates=2))
    path = tmp_path / "dense" / "checkpoint-2.pt"
    checkpoint = checkpoints.read(path)
    del checkpoint["config"]["model"]["language_input"]
    checkpoints.save(checkpoint, path)
    assert not any(VECTOR in name for name in checkpoints.load_model(tmp_path / "dense").model.state_dict())
    config = tiny_run.config(corpus, tmp_path / "more", init_from=path, num_updates=2)
    runs.train(replace(config, model=ModelConfig(language_input=True)))
    loaded = checkpoints.load_model(tmp_path / "more")
    assert loaded.config["model"]["language_input"]
    assert sum(VECTOR in name for name in loaded.model.state_dict()) == 3
    runs.train(tiny_run.config(corpus, tmp_path / "last", "fr", init_from=tmp_path / "more", num_updates=2))
    last = checkpoints.read(tmp_path / "last" / "checkpoint-2.pt")["model"]
    first = checkpoints.read(tmp_path / "more" / "checkpoint-2.pt")["model"]
    assert [torch.equal(last[VECTOR + code], first[VECTOR + code]) for code in LANGUAGES] == [True, False, True]
