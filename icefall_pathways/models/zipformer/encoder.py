"""The Zipformer encoder: stacks of layers at several frame rates.

"Zipformer: A faster and better encoder for automatic speech recognition" (Yao et al., arXiv 2310.11230). Parameters
have the names and shapes of icefall's recipe `zipformer`, and with its weights the outputs are the same.

Input frames are 20 ms long; a stack downsamples them by its `downsampling_factor`; output frames are 40 ms long. All
tensors are (N, T, C). Streams and whole utterances run the same code: an utterance starts from zero states, and its
frames attend to earlier chunks according to masks; the frames of a stream's chunk attend to them through the state.
"""

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.regularizers import Schedule, keep_sequences
from icefall_pathways.models.zipformer.attention_plan import AttentionPlan, plan_chunks, plan_utterances
from icefall_pathways.models.zipformer.config import UNLIMITED, ZipformerConfig
from icefall_pathways.models.zipformer.layer import STATES_PER_LAYER, ZipformerLayer
from icefall_pathways.models.zipformer.norm import Bypass
from icefall_pathways.models.zipformer.subsampling import CONV_FACTOR

#: Frames of the stacks per output frame.
OUTPUT_FACTOR = SUBSAMPLING_FACTOR // CONV_FACTOR

# Probability, per sequence, that the feature mask zeroes both halves of the maskable channels, and otherwise that it
# zeroes the second half.
_FEATURE_MASK_RATE = 0.125


class Downsample(nn.Module):
    """Downsample by learned weighted means of groups of frames; all channels share the weights.

    Args:
      factor: Frames per group.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor) -> Tensor:
        """Downsample frames (N, T, C) to (N, ceil(T / factor), C); the last frame is repeated to complete a group."""
        missing = -x.size(1) % self.factor
        if missing:
            x = torch.cat([x, x[:, -1:].expand(-1, missing, -1)], dim=1)
        weights = self.bias.to(x.dtype).softmax(dim=0)
        return torch.matmul(weights, x.unflatten(1, (-1, self.factor)))


class Stack(nn.Module):
    """Layers that run at one frame rate.

    Args:
      config: The encoder's architecture.
      index: Index of the stack.
    """

    def __init__(self, config: ZipformerConfig, index: int) -> None:
        super().__init__()
        skip_rates = layer_skip_rates(config, index)
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
        """Number of layers."""
        return len(self.layers)

    def get_init_states(self, like: Tensor, batch_size: int, left: int) -> list[Tensor]:
        """Return the initial states of the layers, with the dtype and device of `like`.

        Args:
          like: Any tensor.
          batch_size: Streams.
          left: Frames of left context, at the stack's rate.
        """
        layers = cast(list[ZipformerLayer], self.layers)
        return [state for layer in layers for state in layer.get_init_states(like, batch_size, left)]

    def forward(
        self, x: Tensor, states: list[Tensor], plan: AttentionPlan, feature_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the layers.

        Args:
          x: Frames (N, T, C).
          states: See `get_init_states`.
          plan: Masks and positional encoding.
          feature_mask: Zeros and ones (N, 1, C), applied to the input and to the output of every layer.

        Returns:
          Frames (N, T, C), and the new states.
        """
        new_states = []
        x = x if feature_mask is None else x * feature_mask
        for i, layer in enumerate(self.layers):
            x, layer_states = layer(x, states[i * STATES_PER_LAYER : (i + 1) * STATES_PER_LAYER], plan)
            x = x if feature_mask is None else x * feature_mask
            new_states += layer_states
        return x, new_states


class DownsampledStack(nn.Module):
    """A stack at a lower frame rate, whose upsampled output is combined with its input.

    Args:
      config: The encoder's architecture.
      index: Index of the stack.
    """

    def __init__(self, config: ZipformerConfig, index: int) -> None:
        super().__init__()
        self.downsample = Downsample(config.downsampling_factor[index])
        self.encoder = Stack(config, index)
        self.out_combiner = Bypass(config.encoder_dim[index])

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.encoder.num_layers

    def get_init_states(self, like: Tensor, batch_size: int, left: int) -> list[Tensor]:
        """Return the initial states of the layers, see `Stack`; `left` is at the encoder's rate."""
        return self.encoder.get_init_states(like, batch_size, left // self.downsample.factor)

    def forward(
        self, x: Tensor, states: list[Tensor], plan: AttentionPlan, feature_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the layers over frames (N, T, C); see `Stack`."""
        inner, states = self.encoder(self.downsample(x), states, plan, feature_mask)
        # Twice as fast as repeat_interleave, which also synchronizes with the device.
        repeated = inner.unsqueeze(2).expand(-1, -1, self.downsample.factor, -1).flatten(1, 2)[:, : x.size(1)]
        return self.out_combiner(x, repeated), states


class Zipformer(nn.Module):
    """Zipformer encoder, from frames of 20 ms to frames of 40 ms.

    The state of N streams is a list: six tensors per layer (`ZipformerLayer.get_init_states`), then the number of
    processed frames of each stream (N,), int32. The state of a new stream is zero.

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

    @property
    def _stacks(self) -> list[Stack | DownsampledStack]:
        return cast(list[Stack | DownsampledStack], self.encoders)  # a ModuleList does not keep the type

    def forward(
        self, x: Tensor, lens: Tensor, chunk_size: int = UNLIMITED, left_context_frames: int = UNLIMITED
    ) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Args:
          x: Frames (N, T, D).
          lens: Frames of each utterance (N,).
          chunk_size: Frames per chunk; frames do not depend on later chunks. -1: the whole utterance.
          left_context_frames: Frames before a chunk that its frames attend to; -1: all of them.

        Returns:
          Frames (N, ceil(T / 2), output_dim), undefined in padding; and the valid frames of each utterance (N,).
        """
        plans = {
            factor: plan_utterances(lens, x.size(1), factor, self.config.pos_dim, chunk_size, left_context_frames)
            for factor in set(self.config.downsampling_factor)
        }
        states = self.get_init_states(x, x.size(0), 0)[:-1]
        out, _ = self._run(x, states, plans)
        return out, _output_lens(lens)

    def get_init_states(self, like: Tensor, batch_size: int, left_context_frames: int) -> list[Tensor]:
        """Return the state of `batch_size` new streams, with the dtype and device of `like`; see the class."""
        states = [
            state for stack in self._stacks for state in stack.get_init_states(like, batch_size, left_context_frames)
        ]
        return [*states, torch.zeros(batch_size, dtype=torch.int32, device=like.device)]

    def streaming_forward(
        self, x: Tensor, lens: Tensor, states: list[Tensor], left_context_frames: int, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode the next frames of every stream: one chunk, or several.

        Args:
          x: Frames (N, T, D).
          lens: Valid frames of each stream (N,).
          states: The state of the streams, which may have started at different times; it is not modified.
          left_context_frames: Frames of left context in the state.
          chunk_size: Frames per chunk; None: T.

        Returns:
          Frames (N, T / 2, output_dim), the valid frames of each stream (N,), and the new state.
        """
        *caches, processed_lens = states
        frames, pos_dim = int(x.size(1)), self.config.pos_dim  # int: a constant in exported graphs
        chunk = frames if chunk_size is None else chunk_size
        plans = {
            factor: plan_chunks(lens, processed_lens, frames, factor, pos_dim, chunk, left_context_frames)
            for factor in set(self.config.downsampling_factor)
        }
        out, caches = self._run(x, caches, plans)
        return out, _output_lens(lens), [*caches, processed_lens + lens.to(processed_lens.dtype)]

    def _run(self, x: Tensor, states: list[Tensor], plans: dict[int, AttentionPlan]) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        new_states: list[Tensor] = []
        kept_halves = _sample_kept_halves(x) if self.training else None
        config = self.config
        for stack, factor, dim, unmasked in zip(
            self._stacks, config.downsampling_factor, config.encoder_dim, config.encoder_unmasked_dim, strict=True
        ):
            num_states = stack.num_layers * STATES_PER_LAYER
            stack_states, states = states[:num_states], states[num_states:]
            mask = None if kept_halves is None else feature_mask(kept_halves, dim, unmasked)
            x, stack_states = stack(_resize_channels(x, dim), stack_states, plans[factor], mask)
            outputs.append(x)
            new_states += stack_states
        return self.downsample_output(_join_channels(outputs)), new_states


def layer_skip_rates(config: ZipformerConfig, index: int) -> list[Schedule]:
    """Return the schedule of each layer's skip rate in a stack; later layers decrease theirs later."""
    layers, step = config.num_encoder_layers[index], 4000 / (len(config.num_encoder_layers) + 1)
    last = 0.035 * math.sqrt(config.downsampling_factor[index])
    starts = [step * (index + 1 + i / layers) for i in range(layers + 1)]
    return [Schedule((start, 0.5), (end, last)) for start, end in pairwise(starts)]


def _sample_kept_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sample two masks (N, 1, 1): 1 where a sequence of x (N, ...) keeps each half of the maskable channels."""
    first = keep_sequences(x, _FEATURE_MASK_RATE)
    return first, first * keep_sequences(x, _FEATURE_MASK_RATE)


def feature_mask(kept_halves: tuple[Tensor, Tensor], dim: int, unmasked: int) -> Tensor:
    """Return the feature mask (N, 1, dim) of a stack.

    Args:
      kept_halves: 1 where the first (second) half of the maskable channels is kept, each (N, 1, 1).
      dim: Channels of the stack.
      unmasked: Number of leading channels that the mask never zeroes.
    """
    first, second = kept_halves
    half = (dim - unmasked) // 2
    pieces = [torch.ones_like(first).expand(-1, -1, unmasked), first.expand(-1, -1, half)]
    return torch.cat([*pieces, second.expand(-1, -1, dim - unmasked - half)], dim=-1)


def _resize_channels(x: Tensor, dim: int) -> Tensor:
    """Truncate or zero-pad the channels of frames (N, T, C) to `dim`."""
    if x.size(-1) == dim:
        return x
    return x[..., :dim] if x.size(-1) > dim else F.pad(x, (0, dim - x.size(-1)))


def _join_channels(outputs: list[Tensor]) -> Tensor:
    """Return the last stack's output, extended by further channels from the latest stack that has them."""
    pieces, width = [outputs[-1]], outputs[-1].size(-1)
    for output in reversed(outputs[:-1]):
        if output.size(-1) > width:
            pieces.append(output[..., width:])
            width = output.size(-1)
    return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]


def _output_lens(lens: Tensor) -> Tensor:
    return torch.div(lens + OUTPUT_FACTOR - 1, OUTPUT_FACTOR, rounding_mode="floor")
