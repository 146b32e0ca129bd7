"""The interface between the transducer and its encoder, which every type of encoder implements.

All encoders output frames of 40 ms: an utterance of T feature frames has ceil(T / 4), whether it is encoded whole or
chunk by chunk. The features after its end count as silence, into which the last frames look ahead: the last word is
complete, and the result does not depend on the other utterances of a batch and their padding.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from icefall_pathways.constants import LOG_EPS, SUBSAMPLING_FACTOR


class Encoder(nn.Module, ABC):
    """From features to encoder frames.

    The module that turns features into the encoder's input belongs to the transducer, so that parameters have icefall's
    names (`encoder_embed` and `encoder`); methods receive it as an argument.
    """

    #: Whether every parameter takes part in every call; otherwise DDP has to search for unused ones.
    uses_all_parameters = True

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
        """The axis of the streams in each tensor of the state."""

    @abstractmethod
    def encode(self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode whole utterances.

        Args:
          encoder_embed: The module that turns features into the encoder's input.
          x: Features (N, T, F); those after an utterance's length may have any value.
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
          encoder_embed: The module that turns features into the encoder's input.
          x: Features (N, chunk_window, F); those from `x_lens` on may have any value.
          x_lens: Valid feature frames of each stream (N,); fewer than `chunk_window` only where it ends.
          states: See `init_states`; not changed.

        Returns:
          Frames (N, chunk_shift / 4, D), and the new states.
        """


def encoder_lens(x_lens: Tensor) -> Tensor:
    """Return the number of encoder frames of utterances of `x_lens` feature frames."""
    return torch.div(x_lens + SUBSAMPLING_FACTOR - 1, SUBSAMPLING_FACTOR, rounding_mode="floor")


def pad_with_silence(x: Tensor, x_lens: Tensor, frames: int) -> Tensor:
    """Pad features (N, T, F) to (N, frames, F), and set those from `x_lens` (N,) on to silence."""
    x = nn.functional.pad(x, (0, 0, 0, frames - x.size(1)))
    padding = torch.arange(frames, device=x.device) >= x_lens.unsqueeze(1)
    return x.masked_fill(padding.unsqueeze(-1), LOG_EPS)
