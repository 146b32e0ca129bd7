"""The architecture of a transducer, as options."""

from dataclasses import dataclass

from icefall_pathways.models.subsampling import FACTOR as SUBSAMPLING_FACTOR

_POSITIVE = ("num_encoder_layers", "encoder_dim", "nhead", "dim_feedforward", "segment_length", "context_size")
_NOT_NEGATIVE = ("left_context_length", "right_context_length", "memory_size", "cnn_module_kernel")
_FEATURE_FRAMES = ("segment_length", "left_context_length", "right_context_length")


@dataclass(frozen=True)
class ModelConfig:
    """What a model is made of. Lengths of context are in feature frames of 10 ms, before subsampling by 4."""

    encoder_type: str = "emformer"
    """The encoder: emformer."""

    num_encoder_layers: int = 12
    """Layers of the encoder."""

    encoder_dim: int = 512
    """Width of the encoder; a multiple of nhead."""

    nhead: int = 8
    """Attention heads of an encoder layer."""

    dim_feedforward: int = 2048
    """Hidden width of an encoder layer's feed-forward module."""

    segment_length: int = 32
    """Feature frames (10 ms) of a segment, the piece of speech that a stream is read in; a multiple of 4."""

    left_context_length: int = 32
    """Feature frames (10 ms) before a segment that its frames attend to; a multiple of 4."""

    right_context_length: int = 8
    """Feature frames (10 ms) of look-ahead after a segment; a multiple of 4."""

    memory_size: int = 0
    """Earlier segments that are remembered as one vector each (the Emformer's memory bank); 0 has no memory bank."""

    cnn_module_kernel: int = 0
    """Kernel of the causal convolution module in each encoder layer, in encoder frames of 40 ms; 0 is the plain
    Emformer, which needs much data."""

    dropout: float = 0.1
    """Dropout in the encoder."""

    subsampling_channels: str = "32,128"
    """Output channels of the two 3x3 convolutions that subsample by 4, such as 8,32 for a small model."""

    decoder_dim: int = 512
    """Width of the predictor; a multiple of 4."""

    joiner_dim: int = 512
    """Width of the joiner."""

    context_size: int = 2
    """Tokens that the predictor sees; 1 makes a bigram."""

    ctc_head: bool = False
    """Whether the model has an output layer for an auxiliary CTC loss."""

    def __post_init__(self) -> None:
        if self.encoder_type != "emformer":
            raise ValueError(f"encoder_type is {self.encoder_type!r}: expected emformer")
        for name in (*_POSITIVE, "decoder_dim", "joiner_dim"):
            self._require(getattr(self, name) > 0, name, "a positive number")
        for name in _NOT_NEGATIVE:
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in _FEATURE_FRAMES:
            self._require(
                getattr(self, name) % SUBSAMPLING_FACTOR == 0,
                name,
                f"a multiple of {SUBSAMPLING_FACTOR}, since it counts feature frames of 10 ms before subsampling by "
                f"{SUBSAMPLING_FACTOR} (a segment_length of 32 is 8 encoder frames)",
            )
        self._require(self.encoder_dim % self.nhead == 0, "encoder_dim", f"a multiple of nhead ({self.nhead})")
        self._require(self.context_size == 1 or self.decoder_dim % 4 == 0, "decoder_dim", "a multiple of 4")
        self._require(0.0 <= self.dropout < 1.0, "dropout", "at least 0 and below 1")
        self.channels  # noqa: B018  (reading it checks it)

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)}: expected {expected}")

    @property
    def channels(self) -> tuple[int, int]:
        """`subsampling_channels` as numbers.

        Raises:
          ValueError: They are not two positive numbers.
        """
        words = self.subsampling_channels.replace(",", " ").split()
        numbers = tuple(int(word) if word.isdecimal() else 0 for word in words)
        if len(numbers) != 2 or min(numbers) < 1:
            raise ValueError(
                f"subsampling_channels is {self.subsampling_channels!r}: expected two positive numbers, such as 8,32"
            )
        return numbers[0], numbers[1]
