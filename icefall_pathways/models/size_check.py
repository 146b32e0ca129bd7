"""Check of the size of the model that a file describes: a small file cannot take all memory."""

from dataclasses import fields
from typing import Any

from icefall_pathways.models.config import ModelConfig

_MAX_EXPANSION = 100  # of the size of the architecture, relative to the stored weights


def check_size(config: ModelConfig, vocab_size: Any, num_stored: int) -> None:
    """Check that the architecture is not much larger than the stored weights, before it is built.

    Args:
      config: The options in a file.
      vocab_size: Number of tokens in the file.
      num_stored: Number of weights in the file.

    Raises:
      ValueError: It is much larger, or the number of tokens is not a positive integer.
    """
    architecture = config.architecture.encoder
    numbers = [value for field in fields(architecture) for value in _integers(getattr(architecture, field.name))]
    layers = sum(_integers(architecture.num_encoder_layers))
    widest = max([*numbers, *config.decoder_and_joiner_dim])
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size!r}: expected a positive integer")
    size = max(layers * widest**2, vocab_size * widest)
    if size > _MAX_EXPANSION * num_stored:
        raise ValueError(
            f"the architecture has {layers} layers of width up to {widest} and {vocab_size} tokens, and the file only "
            f"{num_stored} weights"
        )


def _integers(value: Any) -> list[int]:
    values = value if isinstance(value, tuple) else (value,)
    return [item for item in values if isinstance(item, int)]
