"""Convolutional subsampling from feature frames of 10 ms to encoder frames of 40 ms."""

from torch import Tensor, nn

from icefall_pathways.models.norm import LayerNorm

#: Feature frames that T output frames depend on in addition to 4 T: the receptive field is 7 frames.
LOOK_AHEAD = 3

# Approximate mean and inverse standard deviation of log-mel energies of speech with samples in [-1, 1]. They are
# constants, not statistics of the data: the first layer has no large offset to learn, and a stream needs no estimate.
_FEATURE_MEAN = -8.0
_FEATURE_SCALE = 0.25


class EmformerSubsampling(nn.Module):
    """Two 3x3 convolutions of stride 2 in time and frequency, then a linear layer and layer normalization.

    There is no padding in time: output frame j depends only on input frames 4j to 4j + 6, so that the chunks of an
    utterance give the same frames as the whole utterance.

    Args:
      num_bins: Features per frame, at least 7.
      output_dim: Width of the output.
      channels: Output channels of the two convolutions.
    """

    def __init__(self, num_bins: int, output_dim: int, channels: tuple[int, int]) -> None:
        super().__init__()
        first, second = channels
        self.conv = nn.Sequential(
            nn.Conv2d(1, first, kernel_size=3, stride=2),
            nn.SiLU(),
            nn.Conv2d(first, second, kernel_size=3, stride=2),
            nn.SiLU(),
        )
        self.out = nn.Linear(second * (((num_bins - 1) // 2 - 1) // 2), output_dim)
        self.out_norm = LayerNorm(output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample features.

        Args:
          x: Features (N, T, num_bins), T at least 7.

        Returns:
          Frames (N, (T - 3) // 4, output_dim).
        """
        scaled = x.sub(_FEATURE_MEAN).mul(_FEATURE_SCALE)
        maps = self.conv(scaled.unsqueeze(1))  # (N, channels, T', bins')
        frames: Tensor = self.out_norm(self.out(maps.transpose(1, 2).flatten(2)))
        return frames
