"""The Emformer with the encoder interface of the transducer."""

import torch
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.emformer.config import EmformerConfig
from icefall_pathways.models.emformer.encoder import Emformer
from icefall_pathways.models.emformer.subsampling import LOOK_AHEAD, EmformerSubsampling
from icefall_pathways.models.encoder import Encoder, encoder_lens, pad_with_silence


class EmformerEncoder(Emformer, Encoder):
    """Encode features by `EmformerSubsampling` and an Emformer; parameters have the Emformer's names."""

    @property
    def output_dim(self) -> int:
        """Width of the encoder frames."""
        return self.input_dim

    @property
    def chunk_shift(self) -> int:
        """Feature frames per segment."""
        return SUBSAMPLING_FACTOR * self.segment_length

    @property
    def chunk_window(self) -> int:
        """Feature frames of a segment, its right context and the look-ahead of the subsampling."""
        return self.chunk_shift + SUBSAMPLING_FACTOR * self.right_context_length + LOOK_AHEAD

    @property
    def state_axes(self) -> list[int]:
        """Batch axis (streams) of each state tensor."""
        return [0, 0, 0, 0]

    def encode(self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor) -> Tensor:
        """Encode whole utterances; see `Encoder`."""
        frames = -(-x.size(1) // SUBSAMPLING_FACTOR)
        padded = SUBSAMPLING_FACTOR * (frames + self.right_context_length) + LOOK_AHEAD
        out, _ = self(encoder_embed(pad_with_silence(x, x_lens, padded)), encoder_lens(x_lens))
        return out

    def init_states(
        self, encoder_embed: nn.Module, batch_size: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[Tensor]:
        """Return the state of `batch_size` new streams; see `Emformer`."""
        return self.get_init_states(batch_size, device, dtype)

    def stream(
        self, encoder_embed: nn.Module, x: Tensor, x_lens: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode one chunk of every stream; see `Encoder`."""
        embedded = encoder_embed(pad_with_silence(x, x_lens, x.size(1)))
        out, _, states = self.streaming_forward(embedded, encoder_lens(x_lens).clamp(max=self.segment_length), states)
        return out, states


def build_emformer(config: EmformerConfig, num_bins: int) -> tuple[EmformerSubsampling, EmformerEncoder]:
    """Create the subsampling and the encoder with initial weights; see `EncoderSpec`."""
    encoder = EmformerEncoder(
        input_dim=config.encoder_dim,
        num_heads=config.nhead,
        ffn_dim=config.dim_feedforward,
        num_layers=config.num_encoder_layers,
        segment_length=config.segment_length // SUBSAMPLING_FACTOR,
        dropout=config.dropout,
        left_context_length=config.left_context_length // SUBSAMPLING_FACTOR,
        right_context_length=config.right_context_length // SUBSAMPLING_FACTOR,
        max_memory_size=config.memory_size,
        cnn_module_kernel=config.cnn_module_kernel,
    )
    # The order of construction determines the random initial weights: the encoder comes first.
    return EmformerSubsampling(num_bins, config.encoder_dim, config.subsampling_channels), encoder
