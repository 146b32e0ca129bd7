"""The Zipformer with the encoder interface of the transducer."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.encoder import Encoder, pad_with_silence
from icefall_pathways.models.zipformer.config import UNLIMITED, ZipformerConfig
from icefall_pathways.models.zipformer.encoder import OUTPUT_FACTOR, Zipformer
from icefall_pathways.models.zipformer.layer import STATE_AXES
from icefall_pathways.models.zipformer.subsampling import CONV_FACTOR, LOOK_AHEAD, ZipformerSubsampling


class ZipformerEncoder(Zipformer, Encoder):
    """Encode features by `ZipformerSubsampling` and a Zipformer; parameters have the Zipformer's names.

    One model supports many chunk sizes and left contexts. In training, they are sampled for every batch from the values
    in `config`; in eval mode, they are `chunk_size` and `left_context_frames` (in frames of 20 ms): see `set_context`.

    The state of N streams is a list in icefall's order: six tensors per layer (`ZipformerLayer.get_init_states`), the
    last frames of the subsampling (N, channels, 3, bins), and the number of processed frames of 20 ms of each stream
    (N,), int32. The state of a new stream is zero.

    Args:
      config: The architecture.
    """

    uses_all_parameters = False

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__(config)
        self.chunk_size = self.left_context_frames = UNLIMITED
        if config.causal:
            self.set_context(config.chunk_size[0], config.left_context_frames[0])

    def set_context(self, chunk_size: int, left_context_frames: int) -> None:
        """Set the chunk size and left context of eval mode.

        Args:
          chunk_size: In frames of 20 ms; -1: the whole utterance, without streaming.
          left_context_frames: Frames of 20 ms before a chunk that its frames attend to; -1: all of them, without
            streaming.

        Raises:
          ValueError: The encoder does not support them.
        """
        self.config.check_context(chunk_size, left_context_frames)
        self.chunk_size, self.left_context_frames = chunk_size, left_context_frames

    @property
    def chunk_shift(self) -> int:
        """Feature frames per chunk."""
        return CONV_FACTOR * self.chunk_size

    @property
    def chunk_window(self) -> int:
        """Feature frames of a chunk and the look-ahead of the subsampling."""
        return self.chunk_shift + LOOK_AHEAD

    @property
    def state_axes(self) -> list[int]:
        """Batch axis (streams) of each state tensor."""
        return [*STATE_AXES * sum(self.config.num_encoder_layers), 0, 0]

    @property
    def block_encoding(self) -> Literal["unnecessary", "exact", "approximate"]:
        """The effect of `max_context`; see `Encoder`. Blocks are exact if the left context is limited."""
        limited = self.chunk_size > 0 and self.left_context_frames > 0
        return "exact" if limited and self.left_context_frames % self.chunk_size == 0 else "approximate"

    def encode(self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:  # type: ignore[override]
        """Encode whole utterances with the same result as `stream`; see `Encoder`."""
        if self.training or self.max_context is None or x.size(1) <= self.max_context:
            return self._encode_whole(encoder_embed, x, x_lens)
        encode_long = self._encode_blocks if self.block_encoding == "exact" else self._encode_windows
        is_long = x_lens > self.max_context
        rows = torch.cat([is_long.nonzero(), (~is_long).nonzero()]).squeeze(1)
        num_long = int(is_long.sum())
        out = encode_long(encoder_embed, x[rows[:num_long]], x_lens[rows[:num_long]])
        if num_long < rows.numel():
            short = self._encode_whole(encoder_embed, x[rows[num_long:], : self.max_context], x_lens[rows[num_long:]])
            out = torch.cat([out, F.pad(short, (0, 0, 0, out.size(1) - short.size(1)))])
        return out[rows.argsort()]

    @property
    def _group(self) -> int:
        """Frames of 20 ms of which each stack, and the output, has whole frames."""
        return math.lcm(OUTPUT_FACTOR, *self.config.downsampling_factor)

    def _encode_whole(self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode utterances at once, with memory that grows with the square of the duration."""
        # With whole groups, the last group of an utterance contains the same frames in any batch. Chunked convolution
        # and attention do not read later frames.
        frames = _round_up(x.size(1), CONV_FACTOR * self._group) // CONV_FACTOR
        features = pad_with_silence(x, x_lens, CONV_FACTOR * frames + LOOK_AHEAD)
        embedded, _ = encoder_embed.streaming_forward(features, encoder_embed.get_init_states(features, x.size(0)))
        out, _ = self(embedded, _embedded_lens(x_lens), *self.sample_context())
        return out[:, : -(-x.size(1) // SUBSAMPLING_FACTOR)]

    def _encode_blocks(self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode blocks of `max_context` feature frames, each with the state of the previous one."""
        assert self.max_context is not None
        block = _round_up(self.max_context, CONV_FACTOR * math.lcm(self.chunk_size, self._group))
        frames = _round_up(x.size(1), CONV_FACTOR * self._group)
        features = pad_with_silence(x, x_lens, frames + LOOK_AHEAD)
        states = self.init_states(encoder_embed, x.size(0), x.device, x.dtype)
        pieces = []
        for start in range(0, frames, block):
            piece = features[:, start : min(start + block, frames) + LOOK_AHEAD]
            out, states = self.stream(encoder_embed, piece, (x_lens - start).clamp(min=0), states)
            pieces.append(out)
        return torch.cat(pieces, dim=1)[:, : -(-x.size(1) // SUBSAMPLING_FACTOR)]

    def _encode_windows(self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode windows of `max_context` feature frames, an eighth of which on each side is context only."""
        assert self.max_context is not None
        group = CONV_FACTOR * self._group
        margin = _round_up(self.max_context // 8, group)
        step = _round_up(max(1, self.max_context - 2 * margin), group)
        pieces = []
        for start in range(0, x.size(1), step):
            first = max(0, start - margin)
            window = x[:, first : start + step + margin]
            out = self._encode_whole(encoder_embed, window, (x_lens - first).clamp(0, window.size(1)))
            pieces.append(out[:, (start - first) // SUBSAMPLING_FACTOR :][:, : step // SUBSAMPLING_FACTOR])
        return torch.cat(pieces, dim=1)

    def sample_context(self) -> tuple[int, int]:
        """Sample the chunk size and left context of a training batch, or return those of eval mode."""
        if not self.training or not self.config.causal:
            return self.chunk_size, self.left_context_frames
        chunk_size = _sample(self.config.chunk_size)
        return chunk_size, UNLIMITED if chunk_size == UNLIMITED else _sample(self.config.left_context_frames)

    def init_states(  # type: ignore[override]
        self, encoder_embed: ZipformerSubsampling, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the state of `batch_size` new streams.

        Raises:
          ValueError: The encoder cannot stream with its chunk size and left context; see `set_context`.
        """
        self.config.check_streaming(self.chunk_size, self.left_context_frames)
        like = torch.empty(0, device=device, dtype=dtype)
        *caches, processed_lens = self.get_init_states(like, batch_size, self.left_context_frames)
        return [*caches, encoder_embed.get_init_states(like, batch_size), processed_lens]

    def stream(  # type: ignore[override]
        self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream, or several chunks with their look-ahead; see `Encoder`."""
        *caches, embed_state, processed_lens = states
        features = pad_with_silence(x, x_lens, x.size(1))
        embedded, embed_state = encoder_embed.streaming_forward(features, embed_state)
        lens = _embedded_lens(x_lens).clamp(max=int(embedded.size(1)))  # int: a constant in traces
        out, _, (*caches, processed_lens) = self.streaming_forward(
            embedded, lens, [*caches, processed_lens], self.left_context_frames, self.chunk_size
        )
        return out, [*caches, embed_state, processed_lens]


def build_zipformer(config: ZipformerConfig, num_bins: int) -> tuple[ZipformerSubsampling, ZipformerEncoder]:
    """Create the subsampling and the encoder with initial weights; see `EncoderSpec`."""
    encoder_embed = ZipformerSubsampling(num_bins, config.encoder_dim[0], config.front_end_channels)
    return encoder_embed, ZipformerEncoder(config)


def _embedded_lens(x_lens: Tensor) -> Tensor:
    """Return the number of frames of 20 ms (N,) for `x_lens` feature frames."""
    return torch.div(x_lens + CONV_FACTOR - 1, CONV_FACTOR, rounding_mode="floor")


def _round_up(frames: int, unit: int) -> int:
    return -(-frames // unit) * unit


def _sample(values: tuple[int, ...]) -> int:
    return values[int(torch.randint(len(values), ()))]
