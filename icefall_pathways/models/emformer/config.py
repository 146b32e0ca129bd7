"""Options and architecture of the Emformer."""

from dataclasses import dataclass, fields
from typing import Any

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.encoder_options import Architecture, EncoderOptions, parse_ints
from icefall_pathways.ranges import Options, PositiveInt, ShareBelowOne


@dataclass(frozen=True)
class EmformerOptions(EncoderOptions):
    """Options of the Emformer. Context lengths are in feature frames of 10 ms, before subsampling by 4."""

    nhead: PositiveInt = 8
    """Emformer: attention heads per layer."""

    dim_feedforward: PositiveInt = 2048
    """Emformer: hidden width of the feed-forward modules."""

    segment_length: PositiveInt = 32
    """Emformer: feature frames (10 ms) per segment, the unit in which a stream is encoded; a multiple of 4."""

    left_context_length: int = 32
    """Emformer: feature frames (10 ms) before a segment that its frames attend to; a multiple of 4."""

    right_context_length: int = 8
    """Emformer: feature frames (10 ms) of look-ahead after a segment; a multiple of 4."""

    memory_size: int = 0
    """Emformer: size of the memory bank, in earlier segments summarized by one vector each; 0 disables it."""

    dropout: ShareBelowOne = 0.1
    """Emformer: dropout rate. (The Zipformer uses schedules instead.)"""

    subsampling_channels: str = "32,128"
    """Emformer: output channels of the two 3x3 convolutions that subsample by 4, such as 8,32 for a small model."""


@dataclass(frozen=True)
class EmformerConfig(Options):
    """Validated architecture of the Emformer: the values of `EmformerOptions` as numbers.

    Raises:
      ValueError: A value is out of range; the message names the option.
    """

    num_encoder_layers: PositiveInt = 12
    encoder_dim: PositiveInt = 512
    cnn_module_kernel: int = 0
    nhead: PositiveInt = 8
    dim_feedforward: PositiveInt = 2048
    segment_length: PositiveInt = 32
    left_context_length: int = 32
    right_context_length: int = 8
    memory_size: int = 0
    dropout: ShareBelowOne = 0.1
    subsampling_channels: tuple[int, int] = (32, 128)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("segment_length", "left_context_length", "right_context_length"):
            self._require(
                getattr(self, name) % SUBSAMPLING_FACTOR == 0,
                name,
                f"a multiple of {SUBSAMPLING_FACTOR}, since it counts feature frames of 10 ms before subsampling by "
                f"{SUBSAMPLING_FACTOR} (a segment_length of 32 is 8 encoder frames)",
            )
        self._require(self.encoder_dim % self.nhead == 0, "encoder_dim", f"a multiple of nhead ({self.nhead})")

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"{name} is {getattr(self, name)}: expected {expected}")


def resolve(options: EmformerOptions) -> Architecture[EmformerConfig]:
    """Parse and validate the options.

    Raises:
      ValueError: An option is not a number, or out of range.
    """
    values: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(EmformerOptions)}
    for shared in fields(EncoderOptions):
        numbers = parse_ints(shared.name, values.pop(shared.name))
        if len(numbers) > 1:
            raise ValueError(
                f"{shared.name} is {getattr(options, shared.name)}: expected one number for the Emformer; only the "
                "Zipformer takes lists"
            )
        if numbers:
            values[shared.name] = numbers[0]
    words = options.subsampling_channels.replace(",", " ").split()
    values["subsampling_channels"] = channels = tuple(int(word) if word.isdecimal() else 0 for word in words)
    if len(channels) != 2 or min(channels) < 1:
        raise ValueError(
            f"subsampling_channels is {options.subsampling_channels!r}: expected two positive numbers, such as 8,32"
        )
    return Architecture(EmformerConfig(**values))
