"""The Zipformer's front end: from feature frames of 10 ms to frames of 20 ms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.initialization import scale_initial_values
from icefall_pathways.models.zipformer.functions import swoosh_l, swoosh_r
from icefall_pathways.models.zipformer.norm import BiasNorm

FACTOR = 2
#: Frames before and after its own that the ConvNeXt block sees.
CONTEXT = 3
#: Feature frames that T frames need beyond 2 T: 7 for the strided convolutions, 6 for the ConvNeXt block.
LOOK_AHEAD = 7 + FACTOR * CONTEXT

_CHANNELS = (8, 32, 128)
_HIDDEN = 384


class ConvNeXt(nn.Module):
    """A 7x7 depthwise convolution, then two pointwise ones with SwooshL between them; with a residual.

    Args:
      channels: Channels C.
      hidden: Channels between the pointwise convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        side = 2 * CONTEXT + 1
        self.depthwise_conv = nn.Conv2d(channels, channels, side, groups=channels)
        self.pointwise_conv1 = nn.Conv2d(channels, hidden, 1)
        self.pointwise_conv2 = nn.Conv2d(hidden, channels, 1)
        scale_initial_values(self.pointwise_conv2, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """From maps (N, C, T + 6, bins), with 3 frames of context on both sides, to (N, C, T, bins).

        Maps are in memory with the channels last; a pointwise convolution is then a linear layer.
        """
        conv = self.depthwise_conv
        convolved = F.conv2d(x, conv.weight, conv.bias, padding=(0, CONTEXT), groups=x.size(1)).permute(0, 2, 3, 1)
        hidden = swoosh_l(_pointwise(convolved, self.pointwise_conv1))
        branch = _pointwise(hidden, self.pointwise_conv2).permute(0, 3, 1, 2)
        return x[:, :, CONTEXT:-CONTEXT] + branch


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution of maps (N, T, bins, C)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class FrontEnd(nn.Module):
    """Three 3x3 convolutions, a ConvNeXt block, a linear layer and a norm.

    Frame j of the strided convolutions is a function of feature frames 2j to 2j + 8. The ConvNeXt block sees 3 of those
    frames on either side of its own.

    Args:
      num_bins: Features per frame.
      output_dim: Width of the output.
    """

    def __init__(self, num_bins: int, output_dim: int) -> None:
        super().__init__()
        first, second, third = _CHANNELS
        self.bins = ((num_bins - 1) // 2 - 1) // 2
        # The numbers are those of the public recipe, which counts activations too.
        self.conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(1, first, 3, padding=(0, 1)),
                "4": nn.Conv2d(first, second, 3, stride=2),
                "7": nn.Conv2d(second, third, 3, stride=(1, 2)),
            }
        )
        self.convnext = ConvNeXt(third, _HIDDEN)
        self.out = nn.Linear(third * self.bins, output_dim)
        self.out_norm = BiasNorm(output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, as if there were nothing before and after the features.

        Args:
          x: Features (N, T, num_bins), T at least 9.

        Returns:
          Frames (N, (T - 7) // 2, output_dim).
        """
        return self._finish(F.pad(self._convolve(x), (0, 0, CONTEXT, CONTEXT)))

    def init_state(self, like: Tensor, batch_size: int) -> Tensor:
        """The state of new streams (N, C, 3, bins): the last frames of the strided convolutions, zero for a start."""
        return like.new_zeros(batch_size, _CHANNELS[-1], CONTEXT, self.bins)

    def stream(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample the next piece of each stream, or a whole utterance with what follows it.

        Args:
          x: Features (N, 2 T + 13, num_bins), of which the stream's next piece begins 2 T later.
          state: See `init_state`; not changed.

        Returns:
          Frames (N, T, output_dim), and the new state.
        """
        maps = self._convolve(x)
        frames = maps.size(2) - CONTEXT
        return self._finish(torch.cat([state, maps], dim=2)), maps[:, :, frames - CONTEXT : frames]

    def _convolve(self, x: Tensor) -> Tensor:
        """Features (N, T, num_bins) to maps (N, C, (T - 7) // 2, bins), in memory with the channels last."""
        maps = x.unsqueeze(-1).permute(0, 3, 1, 2)
        for conv in self.conv.values():
            weight = conv.weight.contiguous(memory_format=torch.channels_last)
            maps = swoosh_r(F.conv2d(maps, weight, conv.bias, conv.stride, conv.padding))
        return maps

    def _finish(self, maps: Tensor) -> Tensor:
        """Maps with 3 frames of context on both sides to frames (N, T, output_dim)."""
        maps = self.convnext(maps)
        frames: Tensor = self.out_norm(self.out(maps.transpose(1, 2).flatten(2)))
        return frames
