"""The Zipformer encoder: stacks of layers at several frame rates.

"Zipformer: A faster and better encoder for automatic speech recognition" (Yao et al., arXiv 2310.11230). Parameters
have the names and shapes of icefall's recipe `zipformer`, and weights trained there give the same outputs here.

The encoder's own frames are of 20 ms; a stack takes `downsampling_factor` of them as one; the output frames are of
40 ms. Everything is (N, T, C). A chunk of a stream and a whole utterance run the same code: an utterance begins from
zero states and sees earlier chunks through masks, a chunk sees them through the state.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.regularizers import Schedule, keep_sequences
from icefall_pathways.models.zipformer.attention_plan import AttentionPlan, plan_chunk, plan_utterances
from icefall_pathways.models.zipformer.config import UNLIMITED, ZipformerConfig
from icefall_pathways.models.zipformer.layer import STATES_PER_LAYER, ZipformerLayer
from icefall_pathways.models.zipformer.norm import Bypass
from icefall_pathways.models.zipformer.subsampling import CONV_FACTOR

#: Frames of the stacks per output frame.
OUTPUT_FACTOR = SUBSAMPLING_FACTOR // CONV_FACTOR

# How often a sequence loses its masked channels, and how often, if it does not, the second half of them.
_FEATURE_MASK = 0.125


class Downsample(nn.Module):
    """Weighted means of groups of frames; the weights are learnt and the same for all channels.

    Args:
      factor: Frames of a group.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Frames (N, T, C) to (N, ceil(T / factor), C); the last group is filled with its last frame."""
        missing = -x.size(1) % self.factor
        if missing:
            x = torch.cat([x, x[:, -1:].expand(-1, missing, -1)], dim=1)
        weights = self.bias.to(x.dtype).softmax(dim=0)
        return torch.matmul(weights, x.unflatten(1, (-1, self.factor)))


class Stack(nn.Module):
    """Layers that run at one frame rate.

    Args:
      config: The encoder's architecture.
      index: Which stack of it this is.
    """

    def __init__(self, config: ZipformerConfig, index: int) -> None:
        super().__init__()
        skip_rates = _layer_skip_rates(config, index)
        self.layers = nn.ModuleList(
            ZipformerLayer(
                dim=config.encoder_dim[index],
                pos_dim=config.pos_dim,
                num_heads=config.num_heads[index],
                query_head_dim=config.query_head_dim[index],
                pos_head_dim=config.pos_head_dim[index],
                value_head_dim=config.value_head_dim[index],
                feedforward_dim=config.feedforward_dim[index],
                kernel=config.cnn_module_kernel[index],
                causal=config.causal,
                skip_rate=skip_rate,
            )
            for skip_rate in skip_rates
        )

    @property
    def num_layers(self) -> int:
        """Layers."""
        return len(self.layers)

    def get_init_states(self, like: Tensor, batch_size: int, left: int) -> list[Tensor]:
        """The zero states of the layers, of the type and on the device of `like`; `left` is at the encoder's rate."""
        return [state for layer in self.layers for state in layer.get_init_states(like, batch_size, left)]

    def forward(
        self, x: Tensor, states: list[Tensor], plan: AttentionPlan, feature_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the layers over frames (N, T, C); returns frames and the new states.

        `feature_mask` (N, 1, C), zeros and ones, is applied to what comes in and to what every layer gives.
        """
        new_states = []
        x = x if feature_mask is None else x * feature_mask
        for i, layer in enumerate(self.layers):
            x, layer_states = layer(x, states[i * STATES_PER_LAYER : (i + 1) * STATES_PER_LAYER], plan)
            x = x if feature_mask is None else x * feature_mask
            new_states += layer_states
        return x, new_states


class DownsampledStack(nn.Module):
    """A stack at a lower frame rate, whose outcome is mixed into what came in.

    Args:
      config: The encoder's architecture.
      index: Which stack of it this is.
    """

    def __init__(self, config: ZipformerConfig, index: int) -> None:
        super().__init__()
        self.downsample = Downsample(config.downsampling_factor[index])
        self.encoder = Stack(config, index)
        self.out_combiner = Bypass(config.encoder_dim[index])

    @property
    def num_layers(self) -> int:
        """Layers."""
        return self.encoder.num_layers

    def get_init_states(self, like: Tensor, batch_size: int, left: int) -> list[Tensor]:
        """The zero states of the layers, of the type and on the device of `like`; `left` is at the encoder's rate."""
        return self.encoder.get_init_states(like, batch_size, left // self.downsample.factor)

    def forward(
        self, x: Tensor, states: list[Tensor], plan: AttentionPlan, feature_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the layers over frames (N, T, C), see `Stack`; returns frames and the new states."""
        inner, states = self.encoder(self.downsample(x), states, plan, feature_mask)
        # Twice as fast as repeat_interleave, which also waits for the device.
        repeated = inner.unsqueeze(2).expand(-1, -1, self.downsample.factor, -1).flatten(1, 2)[:, : x.size(1)]
        return self.out_combiner(x, repeated), states


class Zipformer(nn.Module):
    """The encoder, from frames of 20 ms to frames of 40 ms.

    The state of N streams is a list: for every layer its six tensors (`ZipformerLayer.get_init_states`), and last, the
    age of each stream in frames (N,), int32. The state of a new stream is zero.

    Args:
      config: The architecture.
    """

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(
            (Stack if factor == 1 else DownsampledStack)(config, i)
            for i, factor in enumerate(config.downsampling_factor)
        )
        self.downsample_output = Downsample(OUTPUT_FACTOR)

    @property
    def output_dim(self) -> int:
        """Width of the output."""
        return max(self.config.encoder_dim)

    def forward(
        self, x: Tensor, lens: Tensor, chunk_size: int = UNLIMITED, left_context_frames: int = UNLIMITED
    ) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Args:
          x: Frames (N, T, D).
          lens: Frames of each utterance (N,).
          chunk_size: Frames of a chunk, beyond whose end nothing is seen; -1 sees the whole utterance.
          left_context_frames: Frames before a chunk that are seen; -1 is all of them.

        Returns:
          Frames (N, ceil(T / 2), output_dim), of which those beyond the lengths mean nothing; and the lengths (N,).
        """
        plans = {
            factor: plan_utterances(lens, x.size(1), factor, self.config.pos_dim, chunk_size, left_context_frames)
            for factor in set(self.config.downsampling_factor)
        }
        states = self.get_init_states(x, x.size(0), 0)[:-1]
        out, _ = self._run(x, states, plans)
        return out, _output_lens(lens)

    def get_init_states(self, like: Tensor, batch_size: int, left_context_frames: int) -> list[Tensor]:
        """The state of `batch_size` new streams, of the type and on the device of `like`."""
        states = [
            state for stack in self.encoders for state in stack.get_init_states(like, batch_size, left_context_frames)
        ]
        return [*states, torch.zeros(batch_size, dtype=torch.int32, device=like.device)]

    def streaming_forward(
        self, x: Tensor, lens: Tensor, states: list[Tensor], left_context_frames: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of every stream.

        Args:
          x: Frames (N, chunk, D).
          lens: Frames of each stream that are no padding (N,).
          states: The streams' state, of whatever ages; it is not changed.
          left_context_frames: Frames that the state remembers.

        Returns:
          Frames (N, chunk / 2, output_dim), how many of them each stream has (N,), and the new state.
        """
        *caches, ages = states
        chunk, pos_dim = int(x.size(1)), self.config.pos_dim  # int: a constant where this is traced
        plans = {
            factor: plan_chunk(lens, ages, factor, pos_dim, chunk, left_context_frames)
            for factor in set(self.config.downsampling_factor)
        }
        out, caches = self._run(x, caches, plans)
        return out, _output_lens(lens), [*caches, ages + lens.to(ages.dtype)]

    def _run(self, x: Tensor, states: list[Tensor], plans: dict[int, AttentionPlan]) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        new_states: list[Tensor] = []
        keep = _draw_feature_masks(x) if self.training else None
        config = self.config
        for stack, factor, dim, unmasked in zip(
            self.encoders, config.downsampling_factor, config.encoder_dim, config.encoder_unmasked_dim, strict=True
        ):
            mine, states = states[: stack.num_layers * STATES_PER_LAYER], states[stack.num_layers * STATES_PER_LAYER :]
            mask = None if keep is None else _feature_mask(keep, dim, unmasked)
            x, mine = stack(_fit(x, dim), mine, plans[factor], mask)
            outputs.append(x)
            new_states += mine
        return self.downsample_output(_widest(outputs)), new_states


def _layer_skip_rates(config: ZipformerConfig, index: int) -> list[Schedule]:
    """How often each layer of a stack is left out in training: one layer after the other begins to take part."""
    layers, step = config.num_encoder_layers[index], 4000 / (len(config.num_encoder_layers) + 1)
    last = 0.035 * math.sqrt(config.downsampling_factor[index])
    starts = [step * (index + 1 + i / layers) for i in range(layers + 1)]
    return [Schedule((begin, 0.5), (end, last)) for begin, end in pairwise(starts)]


def _draw_feature_masks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which sequences of x (N, ...) keep the first, and which the second, half of their masked channels (N, 1, 1)."""
    first = keep_sequences(x, _FEATURE_MASK)
    return first, first * keep_sequences(x, _FEATURE_MASK)


def _feature_mask(keep: tuple[Tensor, Tensor], dim: int, unmasked: int) -> Tensor:
    """The mask (N, 1, dim), of which the first `unmasked` channels are 1."""
    first, second = keep
    half = (dim - unmasked) // 2
    pieces = [torch.ones_like(first).expand(-1, -1, unmasked), first.expand(-1, -1, half)]
    return torch.cat([*pieces, second.expand(-1, -1, dim - unmasked - half)], dim=-1)


def _fit(x: Tensor, dim: int) -> Tensor:
    """Frames (N, T, C) with the last channels dropped, or with channels of zeros after them."""
    if x.size(-1) == dim:
        return x
    return x[..., :dim] if x.size(-1) > dim else F.pad(x, (0, dim - x.size(-1)))


def _widest(outputs: list[Tensor]) -> Tensor:
    """The last stack's output, and the channels that it does not have from the latest stack that has them."""
    pieces, width = [outputs[-1]], outputs[-1].size(-1)
    for output in reversed(outputs[:-1]):
        if output.size(-1) > width:
            pieces.append(output[..., width:])
            width = output.size(-1)
    return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]


def _output_lens(lens: Tensor) -> Tensor:
    return torch.div(lens + OUTPUT_FACTOR - 1, OUTPUT_FACTOR, rounding_mode="floor")
