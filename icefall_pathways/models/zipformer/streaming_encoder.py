"""The Zipformer as an encoder of the transducer."""

import math

import torch
from torch import Tensor

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.encoder import Encoder, pad_with_silence
from icefall_pathways.models.zipformer.config import UNLIMITED, ZipformerConfig
from icefall_pathways.models.zipformer.encoder import OUTPUT_FACTOR, Zipformer
from icefall_pathways.models.zipformer.layer import STATE_AXES
from icefall_pathways.models.zipformer.subsampling import CONV_FACTOR, LOOK_AHEAD, ZipformerSubsampling


class ZipformerEncoder(Zipformer, Encoder):
    """A Zipformer after its `ZipformerSubsampling`; parameters have the Zipformer's names.

    One model runs with many chunk sizes and left contexts. Training draws them for every batch from those of `config`;
    in eval mode they are `chunk_size` and `left_context_frames` (in frames of 20 ms), which `set_context` changes.

    The state of N streams is a list in icefall's order: six tensors for every layer (`ZipformerLayer.get_init_states`),
    the last frames of the subsampling (N, 128, 3, 19), and the age of each stream in frames of 20 ms (N,), int32. The
    state of a new stream is zero.

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
          chunk_size: Frames of 20 ms; -1 is the whole utterance, which excludes streaming.
          left_context_frames: Frames of 20 ms before a chunk that it attends to; -1 is all of them, which excludes
            streaming.

        Raises:
          ValueError: The encoder does not support them.
        """
        self.config.check_context(chunk_size, left_context_frames)
        self.chunk_size, self.left_context_frames = chunk_size, left_context_frames

    @property
    def chunk_shift(self) -> int:
        """Feature frames of a chunk."""
        return CONV_FACTOR * self.chunk_size

    @property
    def chunk_window(self) -> int:
        """Feature frames of a chunk and of the look-ahead of the subsampling."""
        return self.chunk_shift + LOOK_AHEAD

    @property
    def state_axes(self) -> list[int]:
        """The axis of the streams in each tensor of the state."""
        return [*STATE_AXES * sum(self.config.num_encoder_layers), 0, 0]

    def encode(self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:  # type: ignore[override]
        """Encode whole utterances chunk by chunk, which gives the frames of `stream`; see `Encoder`."""
        # Round up to where the groups of frames of all stacks end, so that the last group of an utterance contains the
        # same frames whatever else is in the batch. Chunks and attention do not see later frames.
        group = math.lcm(OUTPUT_FACTOR, *self.config.downsampling_factor)
        frames = -(-x.size(1) // (CONV_FACTOR * group)) * group
        features = pad_with_silence(x, x_lens, CONV_FACTOR * frames + LOOK_AHEAD)
        embedded, _ = encoder_embed.streaming_forward(features, encoder_embed.get_init_states(features, x.size(0)))
        out, _ = self(embedded, _embedded_lens(x_lens), *self.sample_context())
        return out[:, : -(-x.size(1) // SUBSAMPLING_FACTOR)]

    def sample_context(self) -> tuple[int, int]:
        """Draw the chunk size and left context of a batch in training, or return those of eval mode."""
        if not self.training or not self.config.causal:
            return self.chunk_size, self.left_context_frames
        chunk_size = _draw(self.config.chunk_size)
        return chunk_size, UNLIMITED if chunk_size == UNLIMITED else _draw(self.config.left_context_frames)

    def init_states(  # type: ignore[override]
        self, encoder_embed: ZipformerSubsampling, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the state of `batch_size` new streams.

        Raises:
          ValueError: The encoder cannot stream with its chunk size and left context; see `set_context`.
        """
        self.config.check_streaming(self.chunk_size, self.left_context_frames)
        like = torch.empty(0, device=device, dtype=dtype)
        *caches, ages = self.get_init_states(like, batch_size, self.left_context_frames)
        return [*caches, encoder_embed.get_init_states(like, batch_size), ages]

    def stream(  # type: ignore[override]
        self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream; see `Encoder`."""
        *caches, embed_state, ages = states
        features = pad_with_silence(x, x_lens, x.size(1))
        embedded, embed_state = encoder_embed.streaming_forward(features, embed_state)
        lens = _embedded_lens(x_lens).clamp(max=self.chunk_size)
        out, _, (*caches, ages) = self.streaming_forward(embedded, lens, [*caches, ages], self.left_context_frames)
        return out, [*caches, embed_state, ages]


def build_zipformer(config: ZipformerConfig, num_bins: int) -> tuple[ZipformerSubsampling, ZipformerEncoder]:
    """Create the subsampling and the encoder with initial weights; see `EncoderSpec`."""
    encoder_embed = ZipformerSubsampling(num_bins, config.encoder_dim[0], config.front_end_channels)
    return encoder_embed, ZipformerEncoder(config)


def _embedded_lens(x_lens: Tensor) -> Tensor:
    """Return the frames of 20 ms of utterances of `x_lens` feature frames."""
    return torch.div(x_lens + CONV_FACTOR - 1, CONV_FACTOR, rounding_mode="floor")


def _draw(values: tuple[int, ...]) -> int:
    return values[int(torch.randint(len(values), ()))]
