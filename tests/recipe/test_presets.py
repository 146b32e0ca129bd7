"""Presets of the run and the study."""

from dataclasses import replace
from pathlib import Path

import pytest
from recipe_graphs import commands, options_of, read

from icefall_pathways import cli
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.analysis import active_parameters
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import RandomPruning
from icefall_pathways.recipe import presets
from icefall_pathways.recipe.environment import SINGLE_THREAD
from icefall_pathways.recipe.experiments import environment
from icefall_pathways.recipe.programs import read_options
from icefall_pathways.recipe.run import run_graph
from icefall_pathways.recipe.study import study_graph
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.initialization import with_architecture
from icefall_pathways.training.runs import PRUNE_SCOPES

pytestmark = pytest.mark.usefixtures("recipe_folder")


@pytest.mark.parametrize("line", ["--preset stamps", "--corpus stamps"])
def test_stamps_have_a_preset_of_their_own(line):
    config = read("run", line)
    lines = commands(run_graph(config))
    languages = "be bg ca da el es fr ro ru"
    assert config.languages == languages and "--perturb-speed 1" in lines["features"]
    assert f"--languages '{languages}' --vocab-size 200 --output-dir data/stamps/lang_bpe_200" in lines["tokens"]
    updates = {job.name: options_of(job, "num-updates", "updates-per-round")[0][1:] for job in run_graph(config)}
    assert len({updates[name] for name in ("dense-continued", "lap", "pathways", "dynamic")}) == 1
    assert "--masks" not in lines["dynamic"] and "--prune-method adaptive --sparsity 0.7" in lines["dynamic"]
    assert int(updates["masks-lap"][1]) == len(languages.split()) * int(updates["masks-pathways"][1])
    assert "--ngram-lm 'data/stamps/lang_bpe_200/ngram-6-{language}.arpa'" in lines["streaming-decode-pathways"]
    assert environment(config).items() >= SINGLE_THREAD.items()
    assert lines["dense"] != commands(run_graph(read("run", "--corpus stamps --encoder-type zipformer")))["dense"]


@pytest.mark.parametrize("line", ["--demo 1", "--demo 1 --encoder-type zipformer", "--corpus mls", "--preset stamps"])
def test_commands_of_presets_have_valid_options(line):
    for job in run_graph(read("run", line)):
        for step in job.steps:
            script, *options = step.command[1:]
            assert cli.read_config(Path(script).stem.replace("_", "-"), options)


def test_preset_is_another_name_of_the_option_that_selects_it():
    for line, same in (("--preset demo", "--demo 1"), ("--preset stamps", "--corpus stamps")):
        assert replace(read("run", line), preset="") == read("run", same)
    assert read("run", "--preset stamps --vocab-size 90").vocab_size == 90


@pytest.mark.parametrize("line", ["--preset stamps --demo 1", "--preset stamps --corpus mls", "--preset demo --demo 0"])
def test_preset_that_contradicts_another_option_is_rejected(line):
    with pytest.raises(ValueError, match=r"--preset .* has no effect with the settings of"):
        run_graph(read("run", line))


def test_demo_and_study_train_the_same_dense_model():
    (demo,) = options_of(next(job for job in run_graph(presets.DEMO) if job.name == "dense"), "base-lr", "num-updates")
    study = next(job for job in study_graph(presets.STUDY) if job.name == "seed-1-dense")
    assert options_of(study, "base-lr", "num-updates") == [demo]
    assert presets.STUDY_ZIPFORMER.train_args == presets.DEMO_ZIPFORMER.train_args
    assert read("run-study", "--encoder-type zipformer") == presets.STUDY_ZIPFORMER
    assert read("run-study", "--corpus mls") == presets.STUDY_MLS
    assert read("run") == presets.MLS


@pytest.mark.parametrize(("command", "options"), [("run", "--demo 1"), ("run-study", "")])
def test_encoder_without_preset_is_rejected(command, options):
    with pytest.raises(ValueError, match="--encoder-type is lstm, and corpora of this size have presets for emformer"):
        read(command, f"{options} --encoder-type lstm")


def build(config, extra: str = ""):
    """Return the dense model that a configuration trains, with the number of tokens of its vocabulary."""
    words = f"--encoder-type {config.encoder_type} {config.train_args} {extra}"
    options = with_architecture(read_options(ExperimentConfig, "", words.split()), None)
    return build_model(options.model, config.vocab_size)


@pytest.mark.parametrize(
    "config",
    [presets.STUDY, presets.STUDY_ZIPFORMER, presets.STUDY_STAMPS],
    ids=lambda config: f"{config.corpus}-{config.encoder_type}",
)
def test_small_dense_model_has_as_many_parameters_as_a_pathway_uses(config):
    model, small = build(config), build(config, config.small_dense_args)
    masks = PathwayMasks.dense(model, ["en"], PRUNE_SCOPES["encoder-predictor"])
    RandomPruning(0.7, seed=1).prune_after(1, model, masks, ["en"])
    expected = active_parameters(model, masks, "en")
    assert active_parameters(small, None, "en") == pytest.approx(expected, rel=0.02)
