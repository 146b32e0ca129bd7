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

    The state of N streams is a list in the public recipe's order: six tensors for every layer
    (`ZipformerLayer.init_states`), the front end's last frames (N, 128, 3, 19), and how many frames of 20 ms each
    stream has had (N,), int32. A new stream's state is zero.

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
        """Choose the chunks of eval mode.

        Args:
          chunk_size: Frames of 20 ms; -1 is the whole utterance, which cannot stream.
          left_context_frames: Frames of 20 ms before a chunk that it attends to; -1 is all of them, likewise.

        Raises:
          ValueError: The encoder cannot run so.
        """
        self.config.check_context(chunk_size, left_context_frames)
        self.chunk_size, self.left_context_frames = chunk_size, left_context_frames

    @property
    def chunk_shift(self) -> int:
        """Feature frames of a chunk."""
        return CONV_FACTOR * self.chunk_size

    @property
    def chunk_window(self) -> int:
        """Feature frames of a chunk and of what the front end looks ahead."""
        return self.chunk_shift + LOOK_AHEAD

    @property
    def state_axes(self) -> list[int]:
        """The axis of the streams in each tensor of the state."""
        return [*STATE_AXES * sum(self.config.num_encoder_layers), 0, 0]

    def encode(self, front_end: ZipformerSubsampling, x: Tensor, x_lens: Tensor) -> Tensor:  # type: ignore[override]
        """Encode whole utterances; see `Encoder`. In chunks, so that it is what streams give."""
        # Rounded up to where all stacks' groups of frames end, so that an utterance's last group holds the same frames,
        # whatever else is in the batch. Chunks and attention do not see what comes after.
        group = math.lcm(OUTPUT_FACTOR, *self.config.downsampling_factor)
        frames = -(-x.size(1) // (CONV_FACTOR * group)) * group
        features = pad_with_silence(x, x_lens, CONV_FACTOR * frames + LOOK_AHEAD)
        embedded, _ = front_end.stream(features, front_end.init_state(features, x.size(0)))
        chunk_size, left_context_frames = self._context()
        out, _ = self(embedded, _frames(x_lens), chunk_size, left_context_frames)
        return out[:, : -(-x.size(1) // SUBSAMPLING_FACTOR)]

    def _context(self) -> tuple[int, int]:
        if not self.training or not self.config.causal:
            return self.chunk_size, self.left_context_frames
        chunk_size = _draw(self.config.chunk_size)
        return chunk_size, UNLIMITED if chunk_size == UNLIMITED else _draw(self.config.left_context_frames)

    def new_streams(  # type: ignore[override]
        self, front_end: ZipformerSubsampling, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """The state of `batch_size` new streams.

        Raises:
          ValueError: The encoder cannot stream with its chunks; see `set_context`.
        """
        self.config.check_streaming(self.chunk_size, self.left_context_frames)
        like = torch.empty(0, device=device, dtype=dtype)
        *caches, ages = self.init_states(like, batch_size, self.left_context_frames)
        return [*caches, front_end.init_state(like, batch_size), ages]

    def encode_chunk(  # type: ignore[override]
        self, front_end: ZipformerSubsampling, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream; see `Encoder`."""
        *caches, embed_state, ages = states
        embedded, embed_state = front_end.stream(pad_with_silence(x, x_lens, x.size(1)), embed_state)
        lens = _frames(x_lens).clamp(max=self.chunk_size)
        out, _, (*caches, ages) = self.stream(embedded, lens, [*caches, ages], self.left_context_frames)
        return out, [*caches, embed_state, ages]


def _frames(x_lens: Tensor) -> Tensor:
    """Frames of 20 ms of utterances of so many feature frames."""
    return torch.div(x_lens + CONV_FACTOR - 1, CONV_FACTOR, rounding_mode="floor")


def _draw(values: tuple[int, ...]) -> int:
    return values[int(torch.randint(len(values), ()))]
