"""What the transducer asks of an encoder; every encoder type has a class that keeps it.

All of them give frames of 40 ms: an utterance of T feature frames has ceil(T / 4), whether it is encoded whole or chunk
by chunk. What lies behind its end is taken for silence, and the last frames look ahead into that: no last word is lost,
and neither the other utterances of a batch nor its padding change anything.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from icefall_pathways.constants import LOG_EPS, SUBSAMPLING_FACTOR


class Encoder(nn.Module, ABC):
    """From features to encoder frames. The front end, which belongs to the transducer, is handed to it."""

    #: Whether every parameter takes part in every call; distributed training must know.
    uses_all_parameters = True

    @property
    @abstractmethod
    def output_dim(self) -> int:
        """Width of the encoder frames."""

    @property
    @abstractmethod
    def chunk_shift(self) -> int:
        """Feature frames that a stream advances by per chunk; a multiple of 4."""

    @property
    @abstractmethod
    def chunk_window(self) -> int:
        """Feature frames that a chunk reads: the shift and the look-ahead."""

    @property
    @abstractmethod
    def state_axes(self) -> list[int]:
        """The axis of the streams in each tensor of the state."""

    @abstractmethod
    def encode(self, front_end: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode whole utterances.

        Args:
          front_end: What makes the encoder's input of features.
          x: Features (N, T, F); those beyond an utterance's length may be anything.
          x_lens: Feature frames of each utterance (N,).

        Returns:
          Frames (N, ceil(T / 4), D).
        """

    @abstractmethod
    def new_streams(
        self, front_end: nn.Module, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """The state of `batch_size` new streams."""

    @abstractmethod
    def encode_chunk(
        self, front_end: nn.Module, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream.

        Args:
          front_end: What makes the encoder's input of features.
          x: Features (N, chunk_window, F); those beyond `x_lens` may be anything.
          x_lens: Feature frames of each stream that are there (N,); fewer than `chunk_window` only where it ends.
          states: See `new_streams`; not changed.

        Returns:
          Frames (N, chunk_shift / 4, D), and the new states.
        """


def encoder_lens(x_lens: Tensor) -> Tensor:
    """Encoder frames of utterances of so many feature frames."""
    return torch.div(x_lens + SUBSAMPLING_FACTOR - 1, SUBSAMPLING_FACTOR, rounding_mode="floor")


def pad_with_silence(x: Tensor, x_lens: Tensor, frames: int) -> Tensor:
    """Features (N, T, F) as (N, frames, F), with those from `x_lens` (N,) on set to silence."""
    x = nn.functional.pad(x, (0, 0, 0, frames - x.size(1)))
    beyond = torch.arange(frames, device=x.device) >= x_lens.unsqueeze(1)
    return x.masked_fill(beyond.unsqueeze(-1), LOG_EPS)
