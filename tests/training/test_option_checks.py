"""Options without an effect are rejected."""

from dataclasses import replace

import pytest
import tiny_run

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.training import runs
from icefall_pathways.training.config import JointPruningConfig, PruningConfig, TrainingConfig


@pytest.fixture(scope="module")
def dense(corpus, tmp_path_factory):
    exp_dir = tmp_path_factory.mktemp("exp") / "dense"
    runs.train(tiny_run.config(corpus, exp_dir, "en", num_updates=1, ctc_loss_scale=0.0))
    return exp_dir


def train(corpus, exp_dir, data=None, pruning=None, model=tiny_run.MODEL, **training):
    config = tiny_run.config(corpus, exp_dir, "en", **{"num_updates": 1} | training)
    data = replace(config.data, **data or {})
    runs.train(replace(config, data=data, pruning=pruning or config.pruning, model=model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reinit_vocab": True}, "--reinit-vocab has no effect without --init-from: leave it out"),
        ({"init_avg": 1}, "--init-avg has no effect without --init-from"),
        ({"clipping_scale": 1.0}, "--clipping-scale has no effect with --optimizer adamw"),
        (
            {"optimizer": "scaled-adam", "weight_decay": 0.1},
            "--weight-decay has no effect with --optimizer scaled-adam",
        ),
        ({"lr_schedule": "linear", "lr_epochs": 1.0}, "--lr-epochs has no effect with --lr-schedule linear"),
        (
            {"model": replace(tiny_run.MODEL, zipformer="small")},
            "--zipformer has no effect with --encoder-type emformer",
        ),
        (
            {"model": ModelConfig(encoder_type="zipformer", zipformer="tiny", dropout=0.2)},
            "--dropout has no effect with --encoder-type zipformer",
        ),
        (
            {"model": replace(tiny_run.MODEL, ctc_head=True), "ctc_loss_scale": 0.0},
            "--ctc-head has no effect without --ctc-loss-scale",
        ),
        ({"pruning": JointPruningConfig(sparsity=0.5)}, "--sparsity has no effect with --prune-method none"),
        ({"pruning": JointPruningConfig(sparsity=0.5, prune_every=5)}, "--sparsity, --prune-every have no effect with"),
        (
            {"pruning": JointPruningConfig("gradual", regrow="magnitude")},
            "--regrow has no effect with --prune-method grad",
        ),
        ({"data": {"enable_spec_aug": False, "spec_aug_num_frame_masks": 2}}, "no effect with --enable-spec-aug 0"),
        ({"data": {"volume_perturb": False, "volume_perturb_min": -6.0}}, "no effect with --volume-perturb 0"),
        ({"data": {"shar_dir": "/elsewhere"}}, "--shar-dir has no effect with --from-shar 0"),
        ({"data": {"silence_perturb": 0.0, "silence_perturb_seconds": 1.0}}, "no effect with --silence-perturb 0"),
        ({"data": {"join_perturb": 0.0, "join_perturb_seconds": 9.0}}, "no effect with --join-perturb 0"),
    ],
)
def test_options_without_effect_are_rejected_before_training(corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(corpus, tmp_path / "exp", **options)
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_key": "model_avg", "init_avg": 1}, "--init-key has no effect with --init-avg"),
        ({"ctc_loss_scale": 0.3}, "--ctc-loss-scale needs a CTC head, and the model of --init-from .* has none"),
        ({"model": ModelConfig(encoder_dim="32")}, "--encoder-dim is 32, and the model of --init-from .* has 16"),
        ({"model": ModelConfig(encoder_type="zipformer")}, "--encoder-type is zipformer, and .* has emformer"),
    ],
)
def test_options_that_contradict_the_initial_checkpoint_are_rejected(corpus, dense, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(corpus, tmp_path / "exp", init_from=dense, **{"ctc_loss_scale": 0.0} | options)
    assert not (tmp_path / "exp").exists()


def test_options_that_agree_with_the_initial_checkpoint_are_accepted(corpus, dense, tmp_path):
    train(corpus, tmp_path / "exp", init_from=dense, ctc_loss_scale=0.0, model=ModelConfig(encoder_dim="16"))


@pytest.mark.parametrize(
    ("training", "pruning", "message"),
    [
        ({"num_updates": 5}, {}, "--num-updates has no effect in a mask search: use --updates-per-round"),
        (
            {"masks": "some.safetensors"},
            {},
            "--masks has no effect in a mask search.*use --extend-masks",
        ),
        (
            {},
            {"prune_method": "one-shot", "prune_rounds": 3},
            "--prune-rounds has no effect with --prune-method one-shot",
        ),
        (
            {},
            {"prune_method": "random", "updates_per_round": 3},
            "--updates-per-round has no effect with --prune-method random",
        ),
        (
            {"print_diagnostics": True},
            {"prune_method": "random"},
            "--print-diagnostics has no effect with --prune-method random, which trains nothing",
        ),
        ({}, {"prune_rounds": 3, "prune_drop": 0.5}, "--prune-drop has no effect with --prune-rounds"),
    ],
)
def test_options_without_effect_are_rejected_before_a_mask_search(corpus, dense, tmp_path, training, pruning, message):
    search = tiny_run.search(
        corpus, tmp_path / "search", PruningConfig(**pruning), "en", init_from=dense, ctc_loss_scale=0.0
    )
    with pytest.raises(ValueError, match=message):
        runs.find_masks(replace(search, training=replace(search.training, **training)))
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    "options", [{"world_size": 0}, {"keep_last_k": 0}, {"prune_range": 1}, {"lr_batches": 0}, {"lr_warmup": -1}]
)
def test_invalid_values_are_rejected(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is"):
        TrainingConfig(**options)


def test_mask_search_with_zero_jobs_is_rejected():
    with pytest.raises(ValueError, match="--num-jobs is 0: expected at least 1"):
        PruningConfig(num_jobs=0)
