"""Reject options that have no effect before a training starts."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from icefall_pathways.data.augmentation import AugmentationConfig
from icefall_pathways.models.registry import ENCODERS
from icefall_pathways.training.config import (
    ExperimentConfig,
    JointPruningConfig,
    MaskSearchConfig,
    MaskShapeConfig,
)
from icefall_pathways.training.initialization import InitialCheckpoint

_PRUNING_OPTIONS = [field.name for field in fields(JointPruningConfig) if field.name != "prune_method"]
_SHAPE_OPTIONS = [field.name for field in fields(MaskShapeConfig) if field.name != "sparsity"]
_PERTURBATIONS = (("silence_perturb", "silence_perturb_seconds"), ("join_perturb", "join_perturb_seconds"))
_SPEC_AUG_OPTIONS = [field.name for field in fields(AugmentationConfig) if field.name.startswith("spec_aug_")]


def check_training_options(config: ExperimentConfig, initial: InitialCheckpoint | None) -> None:
    """Check that every given option has an effect on a training.

    Args:
      config: All options, with the resolved architecture and optimizer.
      initial: The checkpoint of --init-from.

    Raises:
      ValueError: An option has no effect; the message says why.
    """
    _check_common_options(config, initial)
    pruning = config.pruning
    if pruning.prune_method == "none":
        advice = "choose a method that changes masks, or find masks with prune.py and pass them with --masks"
        _reject_given(pruning, _PRUNING_OPTIONS, "with --prune-method none", advice)
    elif config.training.masks is not None:
        _reject_given(pruning, _SHAPE_OPTIONS, "with --masks, which define their own shape")
    if pruning.prune_method == "gradual":
        _reject_given(pruning, ("prune_ramp", "regrow", "prune_exchange"), "with --prune-method gradual")


def check_search_options(config: MaskSearchConfig, search: ExperimentConfig, initial: InitialCheckpoint | None) -> None:
    """Check that every given option has an effect on a mask search.

    Args:
      config: All options.
      search: The options of the training that finds a mask, with the resolved architecture and optimizer.
      initial: The checkpoint of --init-from.

    Raises:
      ValueError: An option has no effect; the message says why.
    """
    _check_common_options(search, initial)
    advice = "to add languages to existing masks, use --extend-masks"
    _reject_given(
        config.training, ("masks", "freeze_languages"), "in a mask search, which starts with all entries", advice
    )
    _reject_given(config.training, ("num_epochs", "num_updates"), "in a mask search", "use --updates-per-round")
    if config.pruning.prune_method == "random":
        names = ("prune_by", "prune_rounds", "prune_drop", "updates_per_round")
        _reject_given(config.pruning, names, "with --prune-method random")
        _reject_given(config.training, ("print_diagnostics",), "with --prune-method random, which trains nothing")
    elif config.pruning.prune_method == "one-shot":
        _reject_given(config.pruning, ("prune_rounds", "prune_drop"), "with --prune-method one-shot")
    elif config.pruning.prune_rounds:
        _reject_given(config.pruning, ("prune_drop",), "with --prune-rounds")


def _check_common_options(config: ExperimentConfig, initial: InitialCheckpoint | None) -> None:
    training, model = config.training, config.model
    if initial is None:
        _reject_given(training, ("init_key", "reinit_vocab", "init_partial", "init_avg"), "without --init-from")
    if training.init_avg:
        _reject_given(training, ("init_key",), "with --init-avg")
    if training.lr_schedule == "linear":
        _reject_given(training, ("lr_batches", "lr_epochs"), "with --lr-schedule linear")
    other_optimizer = ["clipping_scale"] if training.optimizer == "adamw" else ["weight_decay", "clip_norm"]
    _reject_given(training, other_optimizer, f"with --optimizer {training.optimizer}")
    if initial is None or initial.config is None:  # otherwise the architecture comes from the checkpoint
        own = {field.name for field in fields(model.encoder_spec.options)}
        other_encoders = [field.name for spec in ENCODERS.values() for field in fields(spec.options)]
        names = [name for name in other_encoders if name not in own]
        _reject_given(model, names, f"with --encoder-type {model.encoder_type}")
    if not config.data.enable_spec_aug:
        _reject_given(config.data, _SPEC_AUG_OPTIONS, "with --enable-spec-aug 0")
    if not config.data.volume_perturb:
        _reject_given(config.data, ("volume_perturb_min", "volume_perturb_max"), "with --volume-perturb 0")
    for share, seconds in _PERTURBATIONS:
        if not getattr(config.data, share):
            _reject_given(config.data, (seconds,), f"with --{share.replace('_', '-')} 0")
    if not config.data.from_shar:
        _reject_given(config.data, ("shar_dir",), "with --from-shar 0")
    if not config.data.enable_musan:
        _reject_given(config.data, ("musan_cuts",), "with --enable-musan 0")


def _reject_given(options: Any, names: Iterable[str], reason: str, advice: str = "leave it out") -> None:
    """Raise an error if any of the named options differs from its default."""
    defaults = {field.name: field.default for field in fields(options)}
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != defaults[name]]
    if given:
        raise ValueError(f"{', '.join(given)} {'have' if len(given) > 1 else 'has'} no effect {reason}: {advice}")
