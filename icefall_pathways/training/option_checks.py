"""Options that would do nothing are refused: better at once than found out after days of training."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from icefall_pathways.data.augmentation import AugmentationConfig
from icefall_pathways.experiment.icefall_checkpoints import is_foreign
from icefall_pathways.models.registry import ENCODERS
from icefall_pathways.training.config import (
    ExperimentConfig,
    JointPruningConfig,
    MaskSearchConfig,
    MaskShapeConfig,
)

_PRUNING = [field.name for field in fields(JointPruningConfig) if field.name != "prune_method"]
_SHAPE = [field.name for field in fields(MaskShapeConfig) if field.name != "sparsity"]
_SPEC_AUG = [field.name for field in fields(AugmentationConfig) if field.name.startswith("spec_aug_")]


def check_training_options(config: ExperimentConfig) -> None:
    """Check that every option that was given has an effect on a training.

    Args:
      config: With the architecture and the optimizer that it comes to.

    Raises:
      ValueError: One has none; the message says why.
    """
    _check_shared(config)
    pruning = config.pruning
    if pruning.prune_method == "none":
        advice = "name a method that changes masks, or look for masks by prune.py and give them by --masks"
        _refuse(pruning, _PRUNING, "with --prune-method none", advice)
    elif config.training.masks is not None:
        _refuse(pruning, _SHAPE, "with --masks, which have a shape of their own")
    if pruning.prune_method == "gradual":
        _refuse(pruning, ("prune_ramp", "regrow", "prune_exchange"), "with --prune-method gradual")


def check_search_options(config: MaskSearchConfig, search: ExperimentConfig) -> None:
    """Check that every option that was given has an effect on a mask search.

    Args:
      config: What was given.
      search: The training that it comes to.

    Raises:
      ValueError: One has none; the message says why.
    """
    _check_shared(search)
    advice = "--extend-masks adds languages to masks that are there"
    _refuse(config.training, ("masks", "freeze_languages"), "in a mask search, which begins with all entries", advice)
    _refuse(config.training, ("num_epochs", "num_updates"), "in a mask search", "use --updates-per-round")
    if config.pruning.prune_method == "one-shot":
        _refuse(config.pruning, ("prune_rounds", "prune_drop"), "with --prune-method one-shot")
    elif config.pruning.prune_rounds:
        _refuse(config.pruning, ("prune_drop",), "with --prune-rounds")


def _check_shared(config: ExperimentConfig) -> None:
    training, model = config.training, config.model
    if training.init_from is None:
        _refuse(training, ("init_key", "reinit_vocab", "init_partial", "init_avg"), "without --init-from")
    if training.init_avg:
        _refuse(training, ("init_key",), "with --init-avg")
    if training.lr_schedule == "linear":
        _refuse(training, ("lr_batches", "lr_epochs"), "with --lr-schedule linear")
    of_the_other = ["clipping_scale"] if training.optimizer == "adamw" else ["weight_decay", "clip_norm"]
    _refuse(training, of_the_other, f"with --optimizer {training.optimizer}")
    if training.init_from is None or is_foreign(training.init_from):  # else the architecture is not of the options
        effective = {field.name for field in fields(model.encoder_spec.options)}
        others = [field.name for spec in ENCODERS.values() for field in fields(spec.options)]
        _refuse(model, [name for name in others if name not in effective], f"with --encoder-type {model.encoder_type}")
    if not config.data.enable_spec_aug:
        _refuse(config.data, _SPEC_AUG, "with --enable-spec-aug 0")
    if not config.data.enable_musan:
        _refuse(config.data, ("musan_cuts",), "with --enable-musan 0")


def _refuse(options: Any, names: Iterable[str], why: str, advice: str = "leave it out") -> None:
    """Raise an error if some of these options are not what they are by default."""
    defaults = {field.name: field.default for field in fields(options)}
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != defaults[name]]
    if given:
        raise ValueError(f"{', '.join(given)} {'have' if len(given) > 1 else 'has'} no effect {why}: {advice}")
