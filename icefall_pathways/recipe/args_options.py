"""Check of the options that hold options, such as `--train-args`: what the recipe sets itself is not among them."""

from collections.abc import Collection

from icefall_pathways.recipe.experiments import ExperimentsConfig
from icefall_pathways.recipe.programs import is_typed, split_words

_EXPERIMENT = ("exp_dir", "manifest_dir", "languages", "bpe_model", "world_size")
_TRAINING = (*_EXPERIMENT, "init_from", "masks", "num_updates")
_SET_BY_THE_RECIPE = {
    "prepare_args": ("corpus", "languages", "data_dir", "vocab_size", "subset", "ngram_order"),
    "train_args": (*_EXPERIMENT, "encoder_type", "num_epochs", "masks"),
    "small_dense_args": (*_TRAINING, "encoder_type"),
    "search_args": (*_EXPERIMENT, "init_from", "prune_for", "sparsity", "prune_rounds", "updates_per_round"),
    "finetune_args": _TRAINING,
    "dynamic_args": (*_TRAINING, "prune_method", "sparsity"),
    "decode_args": ("exp_dir", "decoding_method", "split"),
}


def check_args_options(config: ExperimentsConfig, also: Collection[str] = ()) -> None:
    """Check the values of -args options.

    Args:
      config: The options.
      also: Options of trainings and searches that the recipe sets in addition to the usual ones.

    Raises:
      ValueError: An option is one that the recipe sets.
    """
    for name, fixed in _SET_BY_THE_RECIPE.items():
        trains = name not in ("prepare_args", "decode_args")
        reject_options(f"--{name.replace('_', '-')}", getattr(config, name), {*fixed, *(also if trains else ())})


def reject_options(option: str, value: str, names: Collection[str]) -> None:
    """Raise a ValueError if the value of an -args option has one of these options.

    Args:
      option: The -args option.
      value: Its value.
      names: Names of fields, such as `exp_dir`.
    """
    words = split_words(value)
    for name in sorted(names):
        if is_typed(name, words):
            raise ValueError(f"{option} has --{name.replace('_', '-')}, which the recipe sets: leave it out")
