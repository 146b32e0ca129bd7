"""Index tensors and masks for the windows of the Emformer, which `encoder` defines."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowIndex:
    """Indices of the frames that each window reads, in the sequence "P past frames, then S windows of W frames".

    Attributes:
      sources: For each segment, the P frames before it and then the W of its window (S * (P + W),), or the P alone.
      new_past: The last P frames of the segments, which are the past of the next chunk (P,).
    """

    sources: Tensor
    new_past: Tensor

    @staticmethod
    def make(
        num_segments: int,
        segment_length: int,
        window_length: int,
        past_length: int,
        include_windows: bool,
        device: torch.device,
    ) -> "WindowIndex":
        """Compute the indices.

        Args:
          num_segments: S.
          segment_length: Frames of a segment.
          window_length: Frames W of a window.
          past_length: Frames P before each segment.
          include_windows: Whether `sources` contains the windows' own frames.
          device: Device of the indices.
        """
        starts = torch.arange(num_segments + 1, device=device).unsqueeze(1)
        frames = starts * segment_length + torch.arange(-past_length, 0, device=device)  # negative: past frames
        segments = torch.div(frames, segment_length, rounding_mode="floor")
        in_windows = segments * window_length + frames % segment_length
        before = past_length + torch.where(frames < 0, frames, in_windows)
        windows = past_length + starts * window_length + torch.arange(window_length * include_windows, device=device)
        return WindowIndex(torch.cat([before, windows], dim=1)[:-1].flatten(), before[-1])

    def gather(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Gather from windows (N * S, W, C) and past (N, P, C).

        Returns:
          The frames that each window reads (N * S, P + W, C), and the new past (N, P, C).
        """
        joined = torch.cat([past, x.reshape(past.size(0), -1, past.size(2))], dim=1)
        sources = joined.index_select(1, self.sources).reshape(x.size(0), -1, x.size(2))
        return sources, joined.index_select(1, self.new_past)


@dataclass(frozen=True)
class WindowPlan:
    """Indices and mask that all layers of a forward pass share.

    Attributes:
      segment_length: Frames of a segment, which are the first of its window.
      memory: Index into the memory bank, where a segment is one vector; None without a memory bank.
      context: Index of the keys and values of attention.
      convolution: Index of the inputs of the convolution.
      attn_mask: True where a query does not attend to a source (N * S, 1, Q or 1, M + L + W), for Q = W frames and,
        with a memory bank, one summary query.
    """

    segment_length: int
    memory: WindowIndex | None
    context: WindowIndex
    convolution: WindowIndex
    attn_mask: Tensor
