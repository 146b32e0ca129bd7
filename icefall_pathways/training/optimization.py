"""Build the optimizer and the learning rate schedule from the options of a run."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from icefall_pathways.optim.learning_rate import Eden, LearningRate, LinearDecay
from icefall_pathways.optim.masked_adamw import MaskedAdamW
from icefall_pathways.optim.masked_optimizer import MaskedOptimizer, NamedParameters
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.pathways.freezing import freeze_languages
from icefall_pathways.pathways.language_parameters import add_language_parameters
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training.config import ExperimentConfig, TrainingConfig

#: Default base learning rate (--base-lr 0) by optimizer.
BASE_LRS = {"adamw": 1.5e-3, "scaled-adam": 0.045}


def with_optimizer(config: ExperimentConfig) -> ExperimentConfig:
    """Resolve --optimizer auto and --base-lr 0 to the defaults of the encoder and the optimizer."""
    training = config.training
    optimizer = training.optimizer if training.optimizer != "auto" else config.model.encoder_spec.optimizer
    base_lr = training.base_lr or BASE_LRS[optimizer]
    return replace(config, training=replace(training, optimizer=optimizer, base_lr=base_lr))


def build_optimizer(named_parameters: NamedParameters, options: TrainingConfig) -> MaskedOptimizer:
    """Build the optimizer, which also clips the gradients."""
    if options.optimizer == "scaled-adam":
        return ScaledAdam(named_parameters, options.base_lr, options.clipping_scale or None)
    return MaskedAdamW(
        named_parameters, options.base_lr, weight_decay=options.weight_decay, max_norm=options.clip_norm or None
    )


def trainable_masks(
    model: nn.Module, masks: PathwayMasks | None, options: TrainingConfig, languages: Sequence[str]
) -> PathwayMasks | None:
    """Return the masks of the entries that training may change: `masks` without the entries of frozen languages.

    They also cover the parameters that only one of the `languages` uses. With frozen languages, parameters of `model`
    without masks no longer require gradients.
    """
    masks = add_language_parameters(model, masks, languages)
    if masks is None or not options.freeze_languages:
        return masks
    return freeze_languages(model, masks, options.freeze_languages)


def build_learning_rate(options: TrainingConfig, num_updates: int) -> LearningRate:
    """Build the learning rate schedule for a run of `num_updates`."""
    if options.lr_schedule == "linear":
        return LinearDecay(options.base_lr, num_updates, options.lr_warmup)
    return Eden(options.base_lr, options.lr_batches, options.lr_epochs, options.lr_warmup)
