"""Model options: encoder, predictor and joiner."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from icefall_pathways.models.encoder_options import Architecture
from icefall_pathways.models.registry import ENCODERS, EncoderSpec
from icefall_pathways.ranges import PositiveInt

# The options classes of all encoders are base classes, so that one flat command line configures every encoder. Options
# of encoders that are not selected have no effect.
_ENCODER_OPTIONS: Any = tuple(spec.options for spec in ENCODERS.values())

EncoderType = Annotated[str, tyro.conf.arg(help=f"Encoder type: {' or '.join(ENCODERS)}.")]


@dataclass(frozen=True)
class ModelConfig(*_ENCODER_OPTIONS):  # type: ignore[misc]
    """Options of the encoder (inherited from the options class of each encoder), the predictor and the joiner.

    Raises:
      ValueError: An option of the predictor, the joiner or the selected encoder is out of range.
    """

    encoder_type: EncoderType = "emformer"

    decoder_dim: int = 0
    """Width of the predictor; a multiple of 4. 0: the default of the encoder."""

    joiner_dim: int = 0
    """Width of the joiner. 0: the default of the encoder."""

    context_size: PositiveInt = 2
    """Number of previous tokens that the predictor reads; 1: bigram, 2: trigram."""

    ctc_head: bool = False
    """Add an output layer for an auxiliary CTC loss."""

    language_input: bool = False
    """Add a learned vector per language to the input of the encoder, after subsampling, so that the language is an
    input of the model, with or without masks. A language that is added later gets a vector of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_type not in ENCODERS:
            raise ValueError(f"encoder_type is {self.encoder_type!r}: expected {' or '.join(ENCODERS)}")
        self._require(self.context_size == 1 or self.decoder_dim % 4 == 0, "decoder_dim", "a multiple of 4")
        self.architecture  # noqa: B018  (validates the options of the encoder)

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"{name} is {getattr(self, name)}: expected {expected}")

    @property
    def encoder_spec(self) -> EncoderSpec:
        """Registry entry of the selected encoder."""
        return ENCODERS[self.encoder_type]

    @property
    def architecture(self) -> Architecture[Any]:
        """Validated architecture of the selected encoder.

        Raises:
          ValueError: An option is out of range, or the options do not fit together.
        """
        options = self.encoder_spec.options
        return self.encoder_spec.resolve(
            options(**{field.name: getattr(self, field.name) for field in fields(options)})
        )

    @property
    def decoder_and_joiner_dim(self) -> tuple[int, int]:
        """Widths of the predictor and of the joiner."""
        architecture = self.architecture
        return self.decoder_dim or architecture.decoder_dim, self.joiner_dim or architecture.joiner_dim
