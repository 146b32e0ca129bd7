"""Options, named sizes and validated architecture of the Zipformer."""

from dataclasses import dataclass, fields, replace
from typing import Any

from icefall_pathways.models.encoder_options import Architecture, EncoderOptions, parse_ints

#: Chunk size of whole utterances, and left context of all frames before a chunk.
UNLIMITED = -1

_PER_STACK = (
    "num_encoder_layers",
    "downsampling_factor",
    "encoder_dim",
    "encoder_unmasked_dim",
    "feedforward_dim",
    "num_heads",
    "query_head_dim",
    "value_head_dim",
    "pos_head_dim",
    "cnn_module_kernel",
)


def _require(condition: bool, name: str, values: tuple[int, ...], expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {_comma_separated(values)}: expected {expected}")


def _comma_separated(values: tuple[int, ...]) -> str:
    return ",".join(str(value) for value in values)


@dataclass(frozen=True)
class ZipformerConfig:
    """Validated architecture of the Zipformer, with the names of icefall's options.

    Tuples have one number per stack, except where noted.

    Attributes:
      num_encoder_layers: Number of layers.
      downsampling_factor: Factor by which a stack downsamples frames of 20 ms.
      encoder_dim: Width.
      encoder_unmasked_dim: Channels that the feature mask of training never zeroes.
      feedforward_dim: Hidden width of the second of a layer's three feed-forward modules.
      num_heads: Number of attention heads.
      query_head_dim: Width of queries and keys per head.
      value_head_dim: Width of values per head.
      pos_head_dim: Width of position queries per head.
      pos_dim: Width of the positional encoding, the same for all stacks.
      cnn_module_kernel: Kernel size of the convolution modules; odd.
      causal: Whether convolutions exclude later chunks, so that the encoder can stream.
      chunk_size: Any number of chunk sizes in frames of 20 ms, one of which is sampled for every training batch; -1:
        the whole utterance.
      left_context_frames: Any number of left contexts in frames of 20 ms, one of which is sampled for every training
        batch; -1: all frames before the chunk.
      front_end_channels: Output channels of the three convolutions of the subsampling.

    Raises:
      ValueError: A value is out of range, or the values do not fit together; the message names the option.
    """

    num_encoder_layers: tuple[int, ...]
    downsampling_factor: tuple[int, ...]
    encoder_dim: tuple[int, ...]
    encoder_unmasked_dim: tuple[int, ...]
    feedforward_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    query_head_dim: tuple[int, ...]
    value_head_dim: tuple[int, ...]
    pos_head_dim: tuple[int, ...]
    pos_dim: int
    cnn_module_kernel: tuple[int, ...]
    causal: bool = True
    chunk_size: tuple[int, ...] = (16, 32, 64, UNLIMITED)
    left_context_frames: tuple[int, ...] = (64, 128, 256, UNLIMITED)
    front_end_channels: tuple[int, ...] = (8, 32, 128)

    def __post_init__(self) -> None:
        stacks = len(self.num_encoder_layers)
        for name in _PER_STACK:
            values = getattr(self, name)
            _require(len(values) == stacks and min(values, default=0) > 0, name, values, f"{stacks} positive numbers")
        _require(
            all(kernel % 2 for kernel in self.cnn_module_kernel), "cnn_module_kernel", self.cnn_module_kernel, "odd"
        )
        _require(self.pos_dim > 0 and self.pos_dim % 2 == 0, "pos_dim", (self.pos_dim,), "an even number")
        pairs = zip(self.encoder_unmasked_dim, self.encoder_dim, strict=True)
        _require(
            all(unmasked <= dim for unmasked, dim in pairs),
            "encoder_unmasked_dim",
            self.encoder_unmasked_dim,
            f"no more than encoder_dim ({_comma_separated(self.encoder_dim)})",
        )
        channels = self.front_end_channels
        _require(len(channels) == 3 and min(channels) > 0, "front_end_channels", channels, "three positive numbers")
        for name in ("chunk_size", "left_context_frames"):
            values = getattr(self, name)
            _require(len(values) > 0, name, values, "at least one number")
        if self.causal:
            for chunk in self.chunk_size:
                for left in self.left_context_frames:
                    self.check_context(chunk, left)

    def check_context(self, chunk_size: int, left_context_frames: int) -> None:
        """Check that this encoder supports a chunk size and left context, in frames of 20 ms.

        Raises:
          ValueError: It does not; the message names the option and its allowed values.
        """
        if chunk_size == UNLIMITED:
            return
        _require(
            self.causal,
            "chunk_size",
            (chunk_size,),
            f"{UNLIMITED}, because the encoder was built with --causal 0 and needs whole utterances",
        )
        factors = f"a multiple of every downsampling_factor ({_comma_separated(self.downsampling_factor)})"
        _require(
            chunk_size > 0 and not any(chunk_size % factor for factor in self.downsampling_factor),
            "chunk_size",
            (chunk_size,),
            f"{UNLIMITED} or {factors}",
        )
        if left_context_frames == UNLIMITED:
            return
        _require(
            left_context_frames > 0, "left_context_frames", (left_context_frames,), f"{UNLIMITED} or a positive number"
        )
        past_frames = chunk_size * max(1, left_context_frames // chunk_size)
        for kernel, factor in zip(self.cnn_module_kernel, self.downsampling_factor, strict=True):
            _require(
                past_frames >= kernel // 2 * factor,
                "left_context_frames",
                (left_context_frames,),
                f"at least {kernel // 2 * factor} at chunk_size {chunk_size}, for the kernel {kernel} "
                f"at downsampling_factor {factor}",
            )

    def check_streaming(self, chunk_size: int, left_context_frames: int) -> None:
        """Check that this encoder can stream with a chunk size and left context, in frames of 20 ms.

        Raises:
          ValueError: It cannot; the message names the option and its allowed values.
        """
        _require(chunk_size > 0, "chunk_size", (chunk_size,), "a positive number for streaming, such as 16")
        self.check_context(chunk_size, left_context_frames)
        _require(
            left_context_frames > 0 and left_context_frames % chunk_size == 0,
            "left_context_frames",
            (left_context_frames,),
            f"a multiple of chunk_size ({chunk_size}) for streaming",
        )


@dataclass(frozen=True)
class ZipformerOptions(EncoderOptions):
    """Options of the Zipformer: strings of comma-separated numbers, one per stack, as in icefall.

    An empty string takes the value of the named size (`--zipformer`).
    """

    zipformer: str = "default"
    """Size of the Zipformer: default (66 M parameters, icefall's streaming recipe), medium (20 M), small (5 M), mini
    (2.6 M), micro (0.5 M, with fewer channels in the subsampling) or tiny (for tests). The options below override
    individual values of the size."""

    downsampling_factor: str = ""
    """Zipformer: factor by which each stack downsamples frames of 20 ms, such as 1,2,4,8,4,2."""

    encoder_unmasked_dim: str = ""
    """Zipformer: channels of each stack that the feature mask of training never zeroes."""

    feedforward_dim: str = ""
    """Zipformer: hidden width of the feed-forward modules of each stack."""

    num_heads: str = ""
    """Zipformer: attention heads of each stack."""

    query_head_dim: str = ""
    """Zipformer: width of queries and keys per head; one number applies to all stacks."""

    value_head_dim: str = ""
    """Zipformer: width of values per head; one number applies to all stacks."""

    pos_head_dim: str = ""
    """Zipformer: width of position queries per head; one number applies to all stacks."""

    pos_dim: str = ""
    """Zipformer: width of the positional encoding."""

    front_end_channels: str = ""
    """Zipformer: output channels of the three convolutions of the subsampling; 8,32,128 in icefall and most sizes."""

    causal: bool = True
    """Zipformer: support streaming; 0 requires whole utterances, for offline recognition only."""

    chunk_size: str = "16,32,64,-1"
    """Zipformer: chunk sizes in frames of 20 ms, one of which is sampled for every training batch; -1: the whole
    utterance. Decoding uses the first by default."""

    left_context_frames: str = "64,128,256,-1"
    """Zipformer: left contexts in frames of 20 ms, one of which is sampled for every training batch; -1: all frames
    before the chunk."""


def _size(
    layers: tuple[int, ...],
    dim: tuple[int, ...],
    unmasked: tuple[int, ...],
    feedforward: tuple[int, ...],
    other_dim: int,
) -> Architecture[ZipformerConfig]:
    stacks = len(layers)
    encoder = ZipformerConfig(
        num_encoder_layers=layers,
        downsampling_factor=(1, 2, 4, 8, 4, 2)[:stacks],
        encoder_dim=dim,
        encoder_unmasked_dim=unmasked,
        feedforward_dim=feedforward,
        num_heads=(4, 4, 4, 8, 4, 4)[:stacks],
        query_head_dim=(32,) * stacks,
        value_head_dim=(12,) * stacks,
        pos_head_dim=(4,) * stacks,
        pos_dim=48,
        cnn_module_kernel=(31, 31, 15, 15, 15, 31)[:stacks],
    )
    return Architecture(encoder, other_dim, other_dim)


# For small corpora like the demo's. With icefall's subsampling, more than half of the parameters would be there.
_MICRO = Architecture(
    ZipformerConfig(
        num_encoder_layers=(1,) * 4,
        downsampling_factor=(1, 2, 4, 2),
        encoder_dim=(48, 64, 64, 64),
        encoder_unmasked_dim=(48, 64, 64, 64),
        feedforward_dim=(96,) * 4,
        num_heads=(4,) * 4,
        query_head_dim=(16,) * 4,
        value_head_dim=(12,) * 4,
        pos_head_dim=(4,) * 4,
        pos_dim=48,
        cnn_module_kernel=(15,) * 4,
        front_end_channels=(8, 16, 32),
    ),
    decoder_dim=64,
    joiner_dim=64,
)

SIZES = {
    "tiny": _size((1, 1), (16, 24), (16, 16), (16, 24), 16),
    "micro": _MICRO,
    "mini": _size((1,) * 6, (64, 96, 128, 160, 128, 96), (64, 64, 96, 96, 96, 64), (128, 192, 256, 256, 256, 192), 160),
    "small": _size(
        (1,) * 6, (96, 128, 192, 192, 192, 128), (96, 96, 128, 128, 128, 96), (256, 384, 384, 512, 384, 384), 256
    ),
    "medium": _size((2,) * 6, (192, 256, 256, 256, 256, 256), (192,) * 6, (384, 576, 576, 576, 576, 576), 256),
    "default": _size(
        (2, 2, 3, 4, 3, 2),
        (192, 256, 384, 512, 384, 256),
        (192, 192, 256, 256, 256, 192),
        (512, 768, 1024, 1536, 1024, 768),
        512,
    ),
}


def resolve(options: ZipformerOptions) -> Architecture[ZipformerConfig]:
    """Parse and validate the options; an empty one takes the value of the named size.

    Raises:
      ValueError: An option is not a list of numbers, or the options do not fit together.
    """
    if options.zipformer not in SIZES:
        raise ValueError(f"zipformer is {options.zipformer!r}: expected one of {', '.join(SIZES)}")
    size = SIZES[options.zipformer]
    stacks = len(parse_ints("num_encoder_layers", options.num_encoder_layers) or size.encoder.num_encoder_layers)
    changes: dict[str, Any] = {"causal": options.causal}
    for name in (field.name for field in fields(ZipformerConfig) if field.name != "causal"):
        values = parse_ints(name, getattr(options, name))
        if name == "pos_dim":
            _require(len(values) < 2, name, values, "one number")
            changes[name] = values[0] if values else size.encoder.pos_dim
            continue
        values = values or getattr(size.encoder, name)
        changes[name] = values[:1] * stacks if name in _PER_STACK and len(set(values)) == 1 else values
    return replace(size, encoder=replace(size.encoder, **changes))
