"""Which frames the windows of a streaming encoder reach; see `emformer` for what windows are."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowIndex:
    """Where the frames before each segment, and its window, lie in "P frames of the past, then S windows".

    Attributes:
      sources: The P frames before each segment and then the W of its window (S * (P + W),), or without the window.
      past: The last P frames of the segments: the past of what follows (P,).
    """

    sources: Tensor
    past: Tensor

    @staticmethod
    def make(segments: int, segment: int, window: int, past: int, own: bool, device: torch.device) -> "WindowIndex":
        """Args are S, the frames of a segment, W, P, and whether `sources` has the windows' own frames."""
        starts = torch.arange(segments + 1, device=device).unsqueeze(1)
        before = starts * segment + torch.arange(-past, 0, device=device)  # negative ones are of the past
        in_windows = torch.div(before, segment, rounding_mode="floor") * window + before % segment
        before = past + torch.where(before < 0, before, in_windows)
        frames = past + starts * window + torch.arange(window if own else 0, device=device)
        return WindowIndex(torch.cat([before, frames], dim=1)[:-1].flatten(), before[-1])

    def gather(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """From windows (N * S, W, C) and past (N, P, C) to what they reach (N * S, P + W, C) and the new past."""
        joined = torch.cat([past, x.reshape(past.size(0), -1, past.size(2))], dim=1)
        sources = joined.index_select(1, self.sources).reshape(x.size(0), -1, x.size(2))
        return sources, joined.index_select(1, self.past)


@dataclass(frozen=True)
class WindowPlan:
    """What all layers share: the segment's length, what each window reaches, and what its queries may not see.

    Attributes:
      segment: Frames of a segment, the first ones of its window.
      memory: WindowIndex into the memory bank, where a segment is one vector; None without a memory bank.
      context: WindowIndex of attention.
      convolution: WindowIndex of the convolution.
      blocked: (N * S, 1, Q or 1, M + L + W), for Q = W frames and, with a memory bank, one summary.
    """

    segment: int
    memory: WindowIndex | None
    context: WindowIndex
    convolution: WindowIndex
    blocked: Tensor
