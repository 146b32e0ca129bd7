"""Reject options in `-args` options, such as `--train-args`, that the recipe sets itself."""

from collections.abc import Collection

from icefall_pathways.recipe.experiments import ExperimentsConfig
from icefall_pathways.recipe.programs import is_typed, option_flag, split_words

_EXPERIMENT = ("exp_dir", "manifest_dir", "languages", "bpe_model", "world_size")
_FROM_DENSE_MODEL = (*_EXPERIMENT, "init_from", "masks", "num_updates")
_SET_BY_THE_RECIPE = {
    "prepare_args": ("corpus", "languages", "data_dir", "vocab_size", "subset", "ngram_order"),
    "train_args": (*_EXPERIMENT, "encoder_type", "num_epochs", "masks"),
    "small_dense_args": (*_FROM_DENSE_MODEL, "encoder_type"),
    "search_args": (*_EXPERIMENT, "init_from", "prune_for", "sparsity", "prune_rounds", "updates_per_round"),
    "finetune_args": (*_FROM_DENSE_MODEL, "prune_method", "sparsity"),
    "dynamic_args": (*_FROM_DENSE_MODEL, "prune_method", "sparsity"),
    "decode_args": ("exp_dir", "decoding_method", "split"),
}
# Presets have --save-every-n and --keep-last-k, which the study replaces.
_ALSO_SET_BY_THE_STUDY = {
    "train_args": ("seed",),
    "small_dense_args": ("seed", "average_period"),
    "search_args": ("seed", "prune_method"),
    "finetune_args": ("seed", "average_period"),
    "dynamic_args": ("seed", "average_period"),
}


def check_args_options(config: ExperimentsConfig, is_study: bool = False) -> None:
    """Check the values of -args options.

    Args:
      config: The options.
      is_study: The options are those of a study, which sets more.

    Raises:
      ValueError: An option is one that the recipe sets; the message names the option of the recipe, if there is one.
    """
    for name, fixed in _SET_BY_THE_RECIPE.items():
        names = {*fixed, *(_ALSO_SET_BY_THE_STUDY.get(name, ()) if is_study else ())}
        reject_options(option_flag(name), getattr(config, name), names, vars(config))


def reject_options(option: str, value: str, names: Collection[str], recipe_options: Collection[str] = ()) -> None:
    """Raise a ValueError if the value of an -args option has one of these options.

    Args:
      option: The -args option.
      value: Its value.
      names: Names of fields, such as `exp_dir`.
      recipe_options: Names of the options of the recipe, which the message recommends.
    """
    words = split_words(value)
    for name in sorted(names):
        if is_typed(name, words):
            flag = option_flag(name)
            advice = f"use {flag} of the recipe" if name in recipe_options else "leave it out"
            raise ValueError(f"{option} has {flag}, which the recipe sets: {advice}")
