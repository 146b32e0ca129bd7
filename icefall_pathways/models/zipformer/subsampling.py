"""Convolutional subsampling from feature frames of 10 ms to the Zipformer's frames of 20 ms."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.cpu_kernels import depthwise_conv2d
from icefall_pathways.models.initialization import scale_initial_values
from icefall_pathways.models.regularizers import (
    Balancer,
    Schedule,
    Scheduled,
    Whiten,
    drop_channels,
    drop_sequences,
    scale_gradient,
)
from icefall_pathways.models.zipformer.functions import swoosh_l_block, swoosh_r
from icefall_pathways.models.zipformer.norm import BiasNorm

#: Feature frames per frame of the stacks: 20 ms.
CONV_FACTOR = 2
#: Frames of context of the ConvNeXt block on each side.
CONTEXT = 3
#: Feature frames that T output frames depend on in addition to 2 T: 7 for the strided convolutions, 6 for the ConvNeXt
#: block.
LOOK_AHEAD = 7 + CONV_FACTOR * CONTEXT

# Ratio of hidden channels to channels in the ConvNeXt block.
_EXPANSION = 3

_SKIP_RATE = Schedule((0, 0.2), (20000, 0.015))
_DROPOUT = Schedule((0, 0.3), (20000, 0.1))

# Scale of the gradient of the first convolution, which sums over all frames and bins.
_FIRST_GRADIENT_SCALE = 0.2


class ConvNeXt(Scheduled):
    """A 7x7 depthwise convolution and two pointwise convolutions with SwooshL in between, with a residual.

    Args:
      channels: Channels C.
      hidden: Hidden channels between the pointwise convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        side = 2 * CONTEXT + 1
        self.depthwise_conv = nn.Conv2d(channels, channels, side, groups=channels)
        self.pointwise_conv1 = nn.Conv2d(channels, hidden, 1)
        self.hidden_balancer = Balancer(0.3, 1.0, 0.75, 5.0)
        self.pointwise_conv2 = nn.Conv2d(hidden, channels, 1)
        self.out_balancer = Balancer(0.4, 0.6, 1.0, 6.0)
        self.out_whiten = Whiten(1, 5.0)
        scale_initial_values(self.pointwise_conv2, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps (N, T + 6, bins, C), with 3 frames of context on both sides; return (N, T, bins, C)."""
        conv, first, second = self.depthwise_conv, self.pointwise_conv1, self.pointwise_conv2
        convolved = depthwise_conv2d(x, conv.weight, conv.bias, padding=(0, CONTEXT))
        branch = swoosh_l_block(
            convolved,
            first.weight.flatten(1),
            first.get_parameter("bias"),
            second.weight.flatten(1),
            second.get_parameter("bias"),
            self.hidden_balancer.sample_limits(convolved),
            self.hidden_balancer.grad_scale,
        )
        out = x[:, CONTEXT:-CONTEXT] + drop_sequences(branch, self.rate(_SKIP_RATE))
        return self.out_whiten(self.out_balancer(out))


class ZipformerSubsampling(Scheduled):
    """Three 3x3 convolutions, a ConvNeXt block, a linear layer and a norm.

    Frame j of the strided convolutions depends on feature frames 2j to 2j + 8, and the ConvNeXt block on 3 of those
    frames on each side. Maps are (N, T, bins, C), the order in memory.

    Args:
      num_bins: Features per frame.
      output_dim: Width of the output.
      channels: Channels C1, C2, C after each of the three convolutions.
    """

    def __init__(self, num_bins: int, output_dim: int, channels: Sequence[int] = (8, 32, 128)) -> None:
        super().__init__()
        first, second, third = channels
        self.channels = third
        self.bins = ((num_bins - 1) // 2 - 1) // 2
        # The keys are icefall's indices, which also count modules without weights.
        self.conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(1, first, 3, padding=(0, 1)),
                "4": nn.Conv2d(first, second, 3, stride=2),
                "7": nn.Conv2d(second, third, 3, stride=(1, 2)),
            }
        )
        self.balancers = nn.ModuleList(Balancer(0.05, 0.95, 0.2, max_abs) for max_abs in (1.0, 4.0, 4.0))
        self.convnext = ConvNeXt(third, _EXPANSION * third)
        self.out = nn.Linear(third * self.bins, output_dim)
        self.out_whiten = Whiten(1, Schedule((0, 4.0), (20000, 8.0)), grad_scale=0.02)
        self.out_norm = BiasNorm(output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample whole utterances, with zero padding around the output of the strided convolutions.

        Args:
          x: Features (N, T, num_bins), T at least 9.

        Returns:
          Frames (N, (T - 7) // 2, output_dim).
        """
        return self._project(F.pad(self._convolve(x), (0, 0, 0, 0, CONTEXT, CONTEXT)))

    def get_init_states(self, like: Tensor, batch_size: int) -> Tensor:
        """Return the state of new streams (N, C, 3, bins), zeros: the last frames of the strided convolutions."""
        return like.new_zeros(batch_size, self.channels, CONTEXT, self.bins)

    def streaming_forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample the next chunk of each stream, or a whole utterance with its look-ahead.

        Args:
          x: Features (N, 2 T + 13, num_bins); the next chunk starts 2 T frames later.
          state: See `get_init_states`; not modified.

        Returns:
          Frames (N, T, output_dim), and the new state.
        """
        maps = self._convolve(x)
        frames = maps.size(1) - CONTEXT
        out = self._project(torch.cat([state.permute(0, 2, 3, 1), maps], dim=1))
        return out, maps[:, frames - CONTEXT : frames].permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor) -> Tensor:
        """Apply the strided convolutions to features (N, T, num_bins); return maps (N, (T - 7) // 2, bins, C)."""
        maps = x.unsqueeze(-1)
        conv: Any  # nn.Conv2d; a ModuleDict does not keep the type
        for i, (conv, balancer) in enumerate(zip(self.conv.values(), self.balancers, strict=True)):
            weight = conv.weight.contiguous(memory_format=torch.channels_last)
            maps = F.conv2d(maps.permute(0, 3, 1, 2), weight, conv.bias, conv.stride, conv.padding).permute(0, 2, 3, 1)
            if i == 0 and self.training:
                maps = scale_gradient(maps, _FIRST_GRADIENT_SCALE)
            maps = swoosh_r(balancer(maps))
        return maps

    def _project(self, maps: Tensor) -> Tensor:
        """Convert maps with 3 frames of context on both sides to frames (N, T, output_dim)."""
        frames = self.out(self.convnext(maps).transpose(2, 3).flatten(2))
        return drop_channels(self.out_norm(self.out_whiten(frames)), self.rate(_DROPOUT))
