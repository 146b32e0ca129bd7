"""The Emformer as an encoder of the transducer."""

import torch
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.emformer.encoder import Emformer
from icefall_pathways.models.emformer.subsampling import OVERLAP
from icefall_pathways.models.encoder import Encoder, encoder_lens, pad_with_silence


class EmformerEncoder(Emformer, Encoder):
    """An Emformer after `EmformerSubsampling`; parameters have the Emformer's names."""

    @classmethod
    def build(cls, config: ModelConfig) -> "EmformerEncoder":
        """Make one with new weights."""
        dims = config.emformer
        return cls(
            input_dim=dims.encoder_dim,
            num_heads=config.nhead,
            ffn_dim=config.dim_feedforward,
            num_layers=dims.num_encoder_layers,
            segment_length=config.segment_length // SUBSAMPLING_FACTOR,
            dropout=config.dropout,
            left_context_length=config.left_context_length // SUBSAMPLING_FACTOR,
            right_context_length=config.right_context_length // SUBSAMPLING_FACTOR,
            max_memory_size=config.memory_size,
            cnn_module_kernel=dims.cnn_module_kernel,
        )

    @property
    def output_dim(self) -> int:
        """Width of the encoder frames."""
        return self.input_dim

    @property
    def chunk_shift(self) -> int:
        """Feature frames of a segment."""
        return SUBSAMPLING_FACTOR * self.segment_length

    @property
    def chunk_window(self) -> int:
        """Feature frames of a segment, of its right context and of what the subsampling sees beyond."""
        return self.chunk_shift + SUBSAMPLING_FACTOR * self.right_context_length + OVERLAP

    @property
    def state_axes(self) -> list[int]:
        """The axis of the streams in each tensor of the state."""
        return [0, 0, 0, 0]

    def encode(self, front_end: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode whole utterances; see `Encoder`."""
        frames = -(-x.size(1) // SUBSAMPLING_FACTOR)
        features = pad_with_silence(x, x_lens, SUBSAMPLING_FACTOR * (frames + self.right_context_length) + OVERLAP)
        out, _ = self(front_end(features), encoder_lens(x_lens))
        return out

    def new_streams(
        self, front_end: nn.Module, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """The state of `batch_size` new streams; see `Emformer`."""
        return self.init_states(batch_size, device, dtype)

    def encode_chunk(
        self, front_end: nn.Module, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream; see `Encoder`."""
        lens = encoder_lens(x_lens).clamp(max=self.segment_length)
        out, _, states = self.stream(front_end(pad_with_silence(x, x_lens, x.size(1))), lens, states)
        return out, states
