"""Options and architecture of an encoder, which each encoder defines in its `config.py`."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from icefall_pathways.ranges import Options

Config = TypeVar("Config")


@dataclass(frozen=True)
class EncoderOptions(Options):
    """Options that all encoders share. Each encoder adds its own options in a subclass.

    They are strings, which the encoder parses, because their form depends on the encoder: one number, or a list with
    one number per stack. An empty string selects the encoder's default.
    """

    num_encoder_layers: str = ""
    """Number of layers: one number for the Emformer (default 12), one per stack for the Zipformer (2,2,3,4,3,2)."""

    encoder_dim: str = ""
    """Width: one number for the Emformer (default 512; a multiple of nhead), one per stack for the Zipformer."""

    cnn_module_kernel: str = ""
    """Kernel size of the convolution modules. Emformer: kernel of the causal convolution module in each layer, in
    encoder frames of 40 ms; 0 (default): the plain Emformer, which needs much data. Zipformer: one odd number per
    stack."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_encoder_layers", "encoder_dim", "cnn_module_kernel"):
            object.__setattr__(self, name, str(getattr(self, name)))  # code and old checkpoints may pass integers


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
    """Parse integers separated by commas or spaces; an empty string gives an empty tuple.

    Args:
      name: Name of the option, for the error message.
      text: The integers.

    Raises:
      ValueError: An item is not an integer.
    """
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"{name} is {text!r}: expected numbers, such as 2,2,3,4,3,2") from None
