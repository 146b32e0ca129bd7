"""Gated depthwise convolution modules: chunk-causal for streaming, or symmetric over whole utterances."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.cpu_kernels import depthwise_conv2d
from icefall_pathways.models.initialization import scaled_linear
from icefall_pathways.models.regularizers import Balancer, Schedule, Whiten
from icefall_pathways.models.zipformer.attention_plan import AttentionPlan
from icefall_pathways.models.zipformer.functions import swoosh_r


class ChunkCausalConvolution(nn.Module):
    """The sum of a causal depthwise convolution and one that is restricted to the chunk of the frame.

    Near the edges of the chunk, a learned factor per frame scales the latter.

    Args:
      dim: Channels C.
      kernel: Kernel size k of the convolution within the chunk, odd; the causal convolution has k // 2 + 1.
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
          cached: The k // 2 preceding frames (N, C, k // 2).
          chunk: Frames per chunk.

        Returns:
          (N, T, C), and the new `cached`.
        """
        frames = x.size(1)
        joined = torch.cat([cached.transpose(1, 2), x], dim=1)
        causal = _depthwise_conv1d(joined.unsqueeze(1), self.causal_conv, padding=0).squeeze(1)
        chunks = F.pad(x, (0, 0, 0, -frames % chunk)).unflatten(1, (-1, chunk))
        within = _depthwise_conv1d(chunks, self.chunkwise_conv, padding=self.kernel // 2) * self.scale(chunk)
        return causal + within.flatten(1, 2)[:, :frames], joined[:, frames:].transpose(1, 2)

    def folded(self, x: Tensor, cached: Tensor, chunk: int) -> "FoldedChunkConvolution":
        """Return an equivalent module for fixed weights and single chunks of this size."""
        return FoldedChunkConvolution(self, chunk)

    def scale(self, chunk: int) -> Tensor:
        """Return the factors of the frames of a chunk (chunk, C)."""
        left, right = self.chunkwise_conv_scale
        unscaled = chunk - self.kernel  # frames far from both edges
        if unscaled < 0:
            return 1.0 + (left[:, :chunk] + right[:, -chunk:]).t()
        return 1.0 + (F.pad(left, (0, unscaled)) + F.pad(right, (unscaled, 0))).t()


class FoldedChunkConvolution(nn.Module):
    """A `ChunkCausalConvolution` over one chunk, as one matrix product per channel.

    Args:
      conv: The convolution.
      chunk: Frames per chunk.
    """

    def __init__(self, conv: ChunkCausalConvolution, chunk: int) -> None:
        super().__init__()
        matrices, bias = _matrices(conv, chunk)
        self.matrices, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (matrices, bias))

    def forward(self, x: Tensor, cached: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """Convolve; see `ChunkCausalConvolution.forward`. `x` is one chunk."""
        joined = torch.cat([cached, x.transpose(1, 2)], dim=2)
        out = torch.bmm(joined.transpose(0, 1), self.matrices).permute(1, 2, 0) + self.bias
        return out, joined[:, :, chunk:]


@torch.no_grad()
def _matrices(conv: ChunkCausalConvolution, chunk: int) -> tuple[Tensor, Tensor]:
    """Return the matrices (C, k // 2 + chunk, chunk) and the bias (chunk, C) of a folded convolution.

    A matrix consists of the impulse responses of the convolution.
    """
    past, like = conv.kernel // 2, conv.chunkwise_conv_scale
    impulses = torch.eye(past + chunk, dtype=like.dtype).unsqueeze(2).expand(-1, -1, like.size(1))
    inputs = torch.cat([torch.zeros_like(impulses[:1]), impulses])
    out, _ = conv(inputs[:, past:], inputs[:, :past].transpose(1, 2), chunk)
    bias = out[0]
    return (out[1:] - bias).permute(2, 0, 1).contiguous(), bias


class SymmetricConvolution(nn.Conv1d):
    """A noncausal depthwise convolution over whole utterances.

    Args:
      dim: Channels C.
      kernel: Kernel size, odd.
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, groups=dim, padding=kernel // 2)

    def forward(self, x: Tensor, cached: Tensor, chunk: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Convolve frames (N, T, C), with the signature of `ChunkCausalConvolution`; `chunk` has no effect."""
        return _depthwise_conv1d(x.unsqueeze(1), self, padding=self.kernel_size[0] // 2).squeeze(1), cached


def _depthwise_conv1d(x: Tensor, conv: nn.Conv1d, padding: int) -> Tensor:
    """Convolve (N, rows, T, C) over T as 2-D maps, which is many times faster than torch's conv1d."""
    return depthwise_conv2d(x, conv.weight.unsqueeze(2), conv.bias, (0, padding))


class ConvolutionModule(nn.Module):
    """Linear, gate, depthwise convolution, SwooshR, linear.

    Args:
      dim: Width.
      kernel: Kernel size of the depthwise convolution.
      causal: Whether the convolution excludes later chunks, so that the module can stream.
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
          cached: The last inputs of the depthwise convolution (N, C, kernel // 2).
          plan: Masks and chunk size.

        Returns:
          The output without the residual (N, T, C), and the new `cached`.
        """
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        gated = (value * self.gate_balancer(gate).sigmoid()).masked_fill_(plan.padding_mask, 0.0)
        convolved, cached = self.depthwise_conv(gated, cached, plan.chunk)
        return self.out_proj(swoosh_r(self.whiten(self.balancer(convolved)))), cached
