"""Multiply-adds of the models that options of train.py describe. It imports torch, which other modules here do not."""

from collections.abc import Sequence

from icefall_pathways.models.multiply_adds import forward_per_second, model_to_count
from icefall_pathways.recipe.programs import read_args_option
from icefall_pathways.training.config import ExperimentConfig


def training_multiply_adds(words: Sequence[str], vocab_size: int) -> int:
    """Return the multiply-adds of a forward pass of training, per second of audio, of the model that options select.

    Args:
      words: Options of train.py.
      vocab_size: Number of tokens.
    """
    config = read_args_option(ExperimentConfig, "--train-args", "train.py", words).model
    return forward_per_second(model_to_count(config, vocab_size)).total()
