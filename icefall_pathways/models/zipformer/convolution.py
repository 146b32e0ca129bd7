"""Convolution modules: gated, depthwise over time, causal by chunks or over whole utterances."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.cpu_kernels import depthwise_conv2d
from icefall_pathways.models.initialization import scaled_linear
from icefall_pathways.models.regularizers import Balancer, Schedule, Whiten
from icefall_pathways.models.zipformer.attention_plan import AttentionPlan
from icefall_pathways.models.zipformer.functions import swoosh_r


class ChunkCausalConvolution(nn.Module):
    """A depthwise convolution that sees the past, and beside it its own chunk in both directions.

    The two are added; the one within the chunk is scaled by a learnt factor for each frame near the chunk's edges.

    Args:
      dim: Channels C.
      kernel: Frames k that the one within the chunk sees; the causal one sees k // 2 + 1. Odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.causal_conv = nn.Conv1d(dim, dim, kernel // 2 + 1, groups=dim)
        self.chunkwise_conv = nn.Conv1d(dim, dim, kernel, groups=dim, padding=kernel // 2)
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, dim, kernel))
        with torch.no_grad():
            self.causal_conv.get_parameter("bias").uniform_(-0.1, 0.1)

    def forward(self, x: Tensor, cached: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
          x: Frames (N, T, C).
          cached: The last k // 2 frames before them (N, C, k // 2).
          chunk: Frames of a chunk.

        Returns:
          (N, T, C), and the new `cached`.
        """
        frames = x.size(1)
        joined = torch.cat([cached.transpose(1, 2), x], dim=1)
        causal = _depthwise(joined.unsqueeze(1), self.causal_conv, padding=0).squeeze(1)
        chunks = F.pad(x, (0, 0, 0, -frames % chunk)).unflatten(1, (-1, chunk))
        within = _depthwise(chunks, self.chunkwise_conv, padding=self.kernel // 2) * self.scale(chunk)
        return causal + within.flatten(1, 2)[:, :frames], joined[:, frames:].transpose(1, 2)

    def folded(self) -> "FoldedChunkConvolution":
        """For chunks of streams and fixed weights."""
        return FoldedChunkConvolution(self)

    def scale(self, chunk: int) -> Tensor:
        """The factor of each frame of a chunk (chunk, C)."""
        left, right = self.chunkwise_conv_scale
        room = chunk - self.kernel
        if room < 0:
            return 1.0 + (left[:, :chunk] + right[:, -chunk:]).t()
        return 1.0 + (F.pad(left, (0, room)) + F.pad(right, (room, 0))).t()


class FoldedChunkConvolution(nn.Module):
    """A `ChunkCausalConvolution` of one chunk as a product: of each channel's frames with a matrix of its own.

    Quick if the matrices, which depend on the weights alone, are made once (`stream_graph`).

    Args:
      conv: Whose weights to use.
    """

    def __init__(self, conv: ChunkCausalConvolution) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, cached: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Convolve; see `ChunkCausalConvolution.forward`. `x` is one chunk."""
        joined = torch.cat([cached, x.transpose(1, 2)], dim=2)
        matrices, bias = self._matrices(chunk)
        return torch.bmm(joined.transpose(0, 1), matrices).permute(1, 2, 0) + bias, joined[:, :, chunk:]

    def _matrices(self, chunk: int) -> tuple[Tensor, Tensor]:
        """From k // 2 + chunk frames to a chunk (C, k // 2 + chunk, chunk), and the bias (chunk, C).

        Columns are what the convolution makes of frames of which a single one is 1.
        """
        conv, past = self.conv, self.conv.kernel // 2
        ones = (
            torch.eye(past + chunk, dtype=conv.chunkwise_conv_scale.dtype)
            .unsqueeze(2)
            .expand(-1, -1, conv.causal_conv.in_channels)
        )
        zero = torch.zeros_like(ones[:1])
        both = torch.cat([zero, ones])
        out, _ = conv(both[:, past:], both[:, :past].transpose(1, 2), chunk)
        bias = out[0]
        return (out[1:] - bias).permute(2, 0, 1).contiguous(), bias


class SymmetricConvolution(nn.Conv1d):
    """A depthwise convolution that sees as much of the future as of the past, over whole utterances.

    Args:
      dim: Channels C.
      kernel: Frames that it sees; odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, groups=dim, padding=kernel // 2)

    def forward(self, x: Tensor, cached: Tensor, chunk: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Convolve frames (N, T, C); `cached` and `chunk` are there for likeness to `ChunkCausalConvolution`."""
        return _depthwise(x.unsqueeze(1), self, padding=self.kernel_size[0] // 2).squeeze(1), cached


def _depthwise(x: Tensor, conv: nn.Conv1d, padding: int) -> Tensor:
    """Convolve rows of frames (N, rows, T, C) over T: as images, many times faster than torch's conv1d."""
    return depthwise_conv2d(x, conv.weight.unsqueeze(2), conv.bias, (0, padding))


class ConvolutionModule(nn.Module):
    """Linear, gate, depthwise convolution, SwooshR, linear.

    Args:
      dim: Width.
      kernel: Kernel of the depthwise convolution.
      causal: Whether it may see later chunks.
    """

    def __init__(self, dim: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.gate_balancer = Balancer(
            min_positive=Schedule((0, 0.05), (8000, 0.025)),
            max_positive=1.0,
            min_abs=1.5,
            max_abs=Schedule((0, 5.0), (8000, 10.0)),
        )
        self.depthwise_conv = ChunkCausalConvolution(dim, kernel) if causal else SymmetricConvolution(dim, kernel)
        self.balancer = Balancer(
            min_positive=Schedule((0, 0.1), (8000, 0.05)),
            max_positive=1.0,
            min_abs=Schedule((0, 0.2), (20000, 0.5)),
            max_abs=10.0,
        )
        self.whiten = Whiten(1, Schedule((0, 7.5), (20000, 15.0)))
        self.out_proj = scaled_linear(dim, dim, scale=0.05)

    def forward(self, x: Tensor, cached: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
          x: Frames (N, T, C).
          cached: What the depthwise convolution saw last (N, C, kernel // 2).
          plan: See `AttentionPlan`.

        Returns:
          The branch (N, T, C), and the new `cached`.
        """
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        gated = (value * self.gate_balancer(gate).sigmoid()).masked_fill_(plan.padding, 0.0)
        convolved, cached = self.depthwise_conv(gated, cached, plan.chunk)
        return self.out_proj(swoosh_r(self.whiten(self.balancer(convolved)))), cached
