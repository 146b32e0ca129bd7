"""Options and architecture of an encoder: what every type of encoder defines in its `config.py`."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class EncoderOptions:
    """Options that encoders share, as typed. Each type of encoder adds its own options in a subclass.

    Their form depends on the encoder (one number, or a list with one number per stack), so they are text that the
    encoder parses. An empty one stands for the encoder's own default.
    """

    num_encoder_layers: str = ""
    """Layers. A number for the Emformer (12), one for each stack for the Zipformer, such as 2,2,3,4,3,2."""

    encoder_dim: str = ""
    """Width. A number for the Emformer (512), a multiple of nhead; one for each stack for the Zipformer."""

    cnn_module_kernel: str = ""
    """Kernel of the convolution modules. Emformer: kernel of the causal convolution module in each layer, in encoder
    frames of 40 ms; 0, the default, is the plain Emformer and needs much data. Zipformer: one for each stack, odd."""

    def __post_init__(self) -> None:
        for name in ("num_encoder_layers", "encoder_dim", "cnn_module_kernel"):
            object.__setattr__(self, name, str(getattr(self, name)))  # code and old checkpoints may have numbers


@dataclass(frozen=True)
class Architecture(Generic[Config]):
    """A validated architecture.

    Attributes:
      encoder: Configuration of the encoder.
      decoder_dim: Default width of the predictor.
      joiner_dim: Default width of the joiner.
    """

    encoder: Config
    decoder_dim: int = 512
    joiner_dim: int = 512


def parse_ints(name: str, text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of integers; an empty text is an empty list.

    Args:
      name: Name of the option, for the message.
      text: The list.

    Raises:
      ValueError: An item is not an integer.
    """
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"{name} is {text!r}: expected numbers, such as 2,2,3,4,3,2") from None
