"""Encoder interface of the transducer.

All encoders output one frame per 40 ms: ceil(T / 4) frames for T feature frames, both for whole utterances and for
streams. Features after the end of an utterance are replaced by silence, which serves as the look-ahead of its last
frames. The last word is therefore complete, and the output does not depend on the padding of a batch.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from icefall_pathways.constants import LOG_EPS, SUBSAMPLING_FACTOR


class Encoder(nn.Module, ABC):
    """Base class of encoders, which map features to encoder frames.

    The transducer owns the subsampling module, so that parameters have icefall's names (`encoder_embed` and `encoder`);
    methods receive it as an argument.
    """

    #: Whether every forward pass uses every parameter; if not, DDP has to search for unused parameters.
    uses_all_parameters = True

    #: Feature frames above which `encode` computes an utterance in blocks, so that its memory does not grow with the
    #: square of the duration; None: no limit.
    max_context: int | None = None

    @property
    @abstractmethod
    def output_dim(self) -> int:
        """Width of the encoder frames."""

    @property
    @abstractmethod
    def chunk_shift(self) -> int:
        """Feature frames by which a stream advances per chunk; a multiple of 4."""

    @property
    @abstractmethod
    def chunk_window(self) -> int:
        """Feature frames that a chunk reads: the shift and the look-ahead."""

    @property
    @abstractmethod
    def state_axes(self) -> list[int]:
        """Batch axis (streams) of each state tensor."""

    @property
    def block_encoding(self) -> Literal["unnecessary", "exact", "approximate"]:
        """The effect of `max_context`: none, rounding errors, or changes of the frames near the borders of blocks."""
        return "unnecessary"

    @abstractmethod
    def encode(self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode whole utterances.

        Args:
          encoder_embed: The subsampling module.
          x: Features (N, T, F); padding after the end of an utterance may have any value.
          x_lens: Feature frames of each utterance (N,).

        Returns:
          Frames (N, ceil(T / 4), D).
        """

    @abstractmethod
    def init_states(
        self, encoder_embed: nn.Module, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the state of `batch_size` new streams."""

    @abstractmethod
    def stream(
        self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream.

        Args:
          encoder_embed: The subsampling module.
          x: Features (N, chunk_window, F); padding from frame `x_lens` on may have any value.
          x_lens: Valid feature frames of each stream (N,); less than `chunk_window` only at the end of a stream.
          states: See `init_states`; not modified.

        Returns:
          Frames (N, chunk_shift / 4, D), and the new states.
        """


def encoder_lens(x_lens: Tensor) -> Tensor:
    """Return the numbers of encoder frames for `x_lens` feature frames: ceil(x_lens / 4), of any shape."""
    return torch.div(x_lens + SUBSAMPLING_FACTOR - 1, SUBSAMPLING_FACTOR, rounding_mode="floor")


def pad_with_silence(x: Tensor, x_lens: Tensor, frames: int) -> Tensor:
    """Pad features (N, T, F) to (N, frames, F), and replace frames from `x_lens` (N,) on by silence."""
    x = nn.functional.pad(x, (0, 0, 0, frames - x.size(1)))
    padding = torch.arange(frames, device=x.device) >= x_lens.unsqueeze(1)
    return x.masked_fill(padding.unsqueeze(-1), LOG_EPS)
