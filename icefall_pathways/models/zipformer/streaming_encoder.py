"""The Zipformer with the encoder interface of the transducer."""

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

    def encode(self, encoder_embed: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:  # type: ignore[override]
        """Encode whole utterances with the same result as `stream`; see `Encoder`."""
        # Round up to a multiple of the group sizes of all stacks, so that the last group of an utterance contains the
        # same frames in any batch. Chunked convolution and attention do not read later frames.
        group = math.lcm(OUTPUT_FACTOR, *self.config.downsampling_factor)
        frames = -(-x.size(1) // (CONV_FACTOR * group)) * group
        features = pad_with_silence(x, x_lens, CONV_FACTOR * frames + LOOK_AHEAD)
        embedded, _ = encoder_embed.streaming_forward(features, encoder_embed.get_init_states(features, x.size(0)))
        out, _ = self(embedded, _embedded_lens(x_lens), *self.sample_context())
        return out[:, : -(-x.size(1) // SUBSAMPLING_FACTOR)]

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
        """Encode one chunk of every stream; see `Encoder`."""
        *caches, embed_state, processed_lens = states
        features = pad_with_silence(x, x_lens, x.size(1))
        embedded, embed_state = encoder_embed.streaming_forward(features, embed_state)
        lens = _embedded_lens(x_lens).clamp(max=self.chunk_size)
        out, _, (*caches, processed_lens) = self.streaming_forward(
            embedded, lens, [*caches, processed_lens], self.left_context_frames
        )
        return out, [*caches, embed_state, processed_lens]


def build_zipformer(config: ZipformerConfig, num_bins: int) -> tuple[ZipformerSubsampling, ZipformerEncoder]:
    """Create the subsampling and the encoder with initial weights; see `EncoderSpec`."""
    encoder_embed = ZipformerSubsampling(num_bins, config.encoder_dim[0], config.front_end_channels)
    return encoder_embed, ZipformerEncoder(config)


def _embedded_lens(x_lens: Tensor) -> Tensor:
    """Return the number of frames of 20 ms (N,) for `x_lens` feature frames."""
    return torch.div(x_lens + CONV_FACTOR - 1, CONV_FACTOR, rounding_mode="floor")


def _sample(values: tuple[int, ...]) -> int:
    return values[int(torch.randint(len(values), ()))]
