"""The architecture of a transducer, as options.

The encoders share a few names whose kinds differ: a number for the Emformer, a list with a number per stack for the
Zipformer. Those options are text, read by the encoder that is chosen, and empty by default, which is that encoder's own
default. What only one encoder has is in a class of its own; all of them are options of one flat command line.
"""

from dataclasses import dataclass
from typing import NamedTuple

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.zipformer.config import Size, ZipformerOptions, numbers, resolve

ENCODER_TYPES = ("emformer", "zipformer")

#: Options that are numbers for the Emformer and lists for the Zipformer, with the Emformer's defaults.
_SHARED = {"num_encoder_layers": 12, "encoder_dim": 512, "cnn_module_kernel": 0}

_DEFAULT_DIM = 512
_FEATURE_FRAMES = ("segment_length", "left_context_length", "right_context_length")


class EmformerSizes(NamedTuple):
    """The shared options as the Emformer's numbers; see `ModelConfig`."""

    num_encoder_layers: int
    encoder_dim: int
    cnn_module_kernel: int


@dataclass(frozen=True)
class EmformerOptions:
    """The Emformer's own options. Lengths of context are in feature frames of 10 ms, before subsampling by 4."""

    nhead: int = 8
    """Emformer: attention heads of a layer."""

    dim_feedforward: int = 2048
    """Emformer: hidden width of a layer's feed-forward module."""

    segment_length: int = 32
    """Emformer: feature frames (10 ms) of a segment, the piece of speech that a stream is read in; a multiple of 4."""

    left_context_length: int = 32
    """Emformer: feature frames (10 ms) before a segment that its frames attend to; a multiple of 4."""

    right_context_length: int = 8
    """Emformer: feature frames (10 ms) of look-ahead after a segment; a multiple of 4."""

    memory_size: int = 0
    """Emformer: earlier segments that are remembered as one vector each (its memory bank); 0 has no memory bank."""

    dropout: float = 0.1
    """Emformer: dropout. The Zipformer's follow schedules of their own."""

    subsampling_channels: str = "32,128"
    """Emformer: output channels of the two 3x3 convolutions that subsample by 4, such as 8,32 for a small model."""


@dataclass(frozen=True)
class ModelConfig(EmformerOptions, ZipformerOptions):
    """What a model is made of: the encoder, whose own options are in the base classes, the predictor and the joiner."""

    encoder_type: str = "emformer"
    """The encoder: emformer or zipformer."""

    num_encoder_layers: str = ""
    """Layers. A number for the Emformer (12), one for each stack for the Zipformer, such as 2,2,3,4,3,2."""

    encoder_dim: str = ""
    """Width. A number for the Emformer (512), a multiple of nhead; one for each stack for the Zipformer."""

    cnn_module_kernel: str = ""
    """Kernel of the convolution modules. Emformer: kernel of the causal convolution module in each layer, in encoder
    frames of 40 ms; 0, the default, is the plain Emformer and needs much data. Zipformer: one for each stack, odd."""

    decoder_dim: int = 0
    """Width of the predictor; a multiple of 4. 0: that of the Zipformer's size, 512 with the Emformer."""

    joiner_dim: int = 0
    """Width of the joiner. 0: that of the Zipformer's size, 512 with the Emformer."""

    context_size: int = 2
    """Tokens that the predictor sees; 1 makes a bigram."""

    ctc_head: bool = False
    """Whether the model has an output layer for an auxiliary CTC loss."""

    def __post_init__(self) -> None:
        for name in _SHARED:
            object.__setattr__(
                self, name, str(getattr(self, name))
            )  # numbers serve too, in code and in old checkpoints
        if self.encoder_type not in ENCODER_TYPES:
            raise ValueError(f"encoder_type is {self.encoder_type!r}: expected {' or '.join(ENCODER_TYPES)}")
        self._require(self.context_size > 0, "context_size", "a positive number")
        for name in ("decoder_dim", "joiner_dim"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        self._require(self.context_size == 1 or self.decoder_dim % 4 == 0, "decoder_dim", "a multiple of 4")
        if self.encoder_type == "zipformer":
            self.zipformer_size  # noqa: B018  (reading it checks it)
        else:
            self._check_emformer()

    def _check_emformer(self) -> None:
        sizes = self.emformer
        for name in ("nhead", "dim_feedforward", "segment_length"):
            self._require(getattr(self, name) > 0, name, "a positive number")
        for name in ("num_encoder_layers", "encoder_dim"):
            self._require(getattr(sizes, name) > 0, name, "a positive number")
        self._require(sizes.cnn_module_kernel >= 0, "cnn_module_kernel", "0 or more")
        for name in ("left_context_length", "right_context_length", "memory_size"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in _FEATURE_FRAMES:
            self._require(
                getattr(self, name) % SUBSAMPLING_FACTOR == 0,
                name,
                f"a multiple of {SUBSAMPLING_FACTOR}, since it counts feature frames of 10 ms before subsampling by "
                f"{SUBSAMPLING_FACTOR} (a segment_length of 32 is 8 encoder frames)",
            )
        self._require(sizes.encoder_dim % self.nhead == 0, "encoder_dim", f"a multiple of nhead ({self.nhead})")
        self._require(0.0 <= self.dropout < 1.0, "dropout", "at least 0 and below 1")
        self.channels  # noqa: B018  (reading it checks it)

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)}: expected {expected}")

    @property
    def emformer(self) -> EmformerSizes:
        """The shared options as the Emformer's.

        Raises:
          ValueError: One is not a number.
        """
        found = {name: numbers(name, getattr(self, name)) or (default,) for name, default in _SHARED.items()}
        for name, values in found.items():
            self._require(len(values) == 1, name, "one number with the Emformer; lists are the Zipformer's")
        return EmformerSizes(**{name: values[0] for name, values in found.items()})

    @property
    def zipformer_size(self) -> Size:
        """The Zipformer that the options describe, and the widths of predictor and joiner that go with its size.

        Raises:
          ValueError: The options do not fit together.
        """
        return resolve(self, **{name: getattr(self, name) for name in _SHARED})

    @property
    def decoder_and_joiner_dim(self) -> tuple[int, int]:
        """Widths of the predictor and of the joiner."""
        defaults = (_DEFAULT_DIM, _DEFAULT_DIM)
        if self.encoder_type == "zipformer":
            defaults = self.zipformer_size.decoder_dim, self.zipformer_size.joiner_dim
        return self.decoder_dim or defaults[0], self.joiner_dim or defaults[1]

    @property
    def channels(self) -> tuple[int, int]:
        """`subsampling_channels` as numbers.

        Raises:
          ValueError: They are not two positive numbers.
        """
        words = self.subsampling_channels.replace(",", " ").split()
        found = tuple(int(word) if word.isdecimal() else 0 for word in words)
        if len(found) != 2 or min(found) < 1:
            raise ValueError(
                f"subsampling_channels is {self.subsampling_channels!r}: expected two positive numbers, such as 8,32"
            )
        return found[0], found[1]
