"""Registry of the encoders that `--encoder-type` selects. To add one, write a folder and a line of `ENCODERS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from icefall_pathways.models.emformer.config import EmformerOptions
from icefall_pathways.models.emformer.config import resolve as resolve_emformer
from icefall_pathways.models.emformer.streaming_encoder import build_emformer
from icefall_pathways.models.encoder import Encoder
from icefall_pathways.models.encoder_options import Architecture, EncoderOptions
from icefall_pathways.models.zipformer.config import ZipformerOptions
from icefall_pathways.models.zipformer.config import resolve as resolve_zipformer
from icefall_pathways.models.zipformer.streaming_encoder import build_zipformer


@dataclass(frozen=True)
class EncoderSpec:
    """Configuration and construction of one type of encoder.

    Attributes:
      options: Dataclass of the encoder's options, which become options of the command line and of `ModelConfig`. Two
        encoders may share an option only if both inherit it from `EncoderOptions`.
      resolve: Validates the options and returns the architecture; raises ValueError.
      build: Creates the subsampling module (`encoder_embed`) and the encoder, with initial weights, from
        `Architecture.encoder` and the number of mel bins.
      optimizer: The optimizer that `--optimizer auto` selects.
      balanced_predictor: Whether the predictor has balancers; see `Predictor`.
    """

    options: type[EncoderOptions]
    resolve: Callable[[Any], Architecture[Any]]
    build: Callable[[Any, int], tuple[nn.Module, Encoder]]
    optimizer: Literal["adamw", "scaled-adam"] = "scaled-adam"
    balanced_predictor: bool = False


ENCODERS: dict[str, EncoderSpec] = {
    "emformer": EncoderSpec(EmformerOptions, resolve_emformer, build_emformer, "adamw"),
    "zipformer": EncoderSpec(ZipformerOptions, resolve_zipformer, build_zipformer, balanced_predictor=True),
}
