"""A model keeps the level normalization of the features that it was trained on."""

from dataclasses import replace

import pytest
import tiny_run

from icefall_pathways.decoding.config import DecodeConfig
from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import stored_level_norm
from icefall_pathways.files import read_json, write_json
from icefall_pathways.training import runs
from icefall_pathways.training.initialization import InitialCheckpoint, with_level_norm


def trained(corpus, exp_dir, level_norm):
    config = tiny_run.config(corpus, exp_dir, num_updates=2)
    config = replace(config, data=replace(config.data, level_norm=level_norm))
    runs.train(config)
    return config


@pytest.fixture(scope="module", params=["auto", "none"])
def config(request, corpus, tmp_path_factory):
    """Return the options of a training, with the default and without a normalization."""
    return trained(corpus, tmp_path_factory.mktemp("exp") / "dense", request.param)


def expected(config):
    return "none" if config.data.level_norm == "none" else "running-max"


def test_the_normalization_is_recorded_and_used_in_decoding(config):
    exp_dir = config.training.exp_dir
    assert stored_level_norm(exp_dir) == expected(config)
    model = load_trained_model(DecodeConfig(exp_dir=exp_dir))
    decoder = model.build_decoder(DecodeConfig(exp_dir=exp_dir), ["en"])
    assert decoder.fbank.level_norm == model.data_config.fbank.level_norm == expected(config)


def test_resumed_and_derived_trainings_keep_the_normalization(config, tmp_path):
    exp_dir, auto = config.training.exp_dir, replace(config.data, level_norm="auto")
    initial = InitialCheckpoint(exp_dir)
    assert with_level_norm(auto, exp_dir, None).level_norm == expected(config)
    assert with_level_norm(auto, tmp_path, initial).level_norm == expected(config)
    assert with_level_norm(auto, tmp_path, None).level_norm == "running-max"
    assert with_level_norm(replace(auto, level_norm="none"), tmp_path, initial).level_norm == "none"


def test_resuming_with_another_normalization_is_an_error(config):
    other = "running-max" if expected(config) == "none" else "none"
    resumed = replace(config, data=replace(config.data, level_norm=other))
    with pytest.raises(ValueError, match=f"holds a run with level_norm={expected(config)}, this one has"):
        runs.train(replace(resumed, training=replace(config.training, num_updates=4)))


def test_models_of_earlier_versions_are_not_normalized(config, tmp_path):
    path = layout.batch_checkpoint(config.training.exp_dir, 2)
    checkpoint = checkpoints.read(path)
    names = ("level_norm", "volume_perturb", "shift_perturb", "silence_perturb", "join_perturb")
    checkpoint["config"]["data"] = {k: v for k, v in checkpoint["config"]["data"].items() if k not in names}
    for name in (layout.BPE_MODEL_FILE, layout.TOKENS_FILE):
        (tmp_path / name).write_bytes((config.training.exp_dir / name).read_bytes())
    features = read_json(config.training.exp_dir / layout.FEATURES_FILE)
    write_json(tmp_path / layout.FEATURES_FILE, {k: v for k, v in features.items() if k != "level_norm"})
    checkpoints.save(checkpoint, tmp_path / path.name)
    assert load_trained_model(DecodeConfig(exp_dir=tmp_path)).data_config.fbank.level_norm == "none"
    assert InitialCheckpoint(tmp_path).level_norm == "none"
    assert with_level_norm(replace(config.data, level_norm="auto"), tmp_path, None).level_norm == "none"
