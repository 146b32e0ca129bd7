"""Triton kernel of the recursions of `lattice`, for CUDA.

One program per utterance and direction runs all rows of its lattice; the frames of a row are computed in parallel, by a
scan. The host launches one kernel, where PyTorch needs two operators per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def forward_backward(arcs: Tensor, starts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a and b (N, S + 1, T) as `lattice` defines them, float64.

    Args:
      arcs: d of `lattice` (N, S, T), float64, contiguous.
      starts: The first row of a and the last row of b (2, N, T), float64, contiguous.
      dtype: Precision of exponentials and logarithms, float32 or float64. All sums are in float64.
    """
    batch_size, num_tokens, num_frames = arcs.shape
    a_and_b = arcs.new_empty(2, batch_size, num_tokens + 1, num_frames)
    width = triton.next_power_of_2(num_frames)
    num_warps = min(max(width // 64, 1), 8) if width <= 1024 else 16  # the fastest on an H200
    options = {"WIDTH": width, "PRECISE": dtype == torch.float64, "num_warps": num_warps}
    with torch.cuda.device_of(arcs):
        _sum_rows[(batch_size, 2)](arcs, starts, a_and_b, num_tokens, num_frames, **options)
    a, b = a_and_b.unbind()
    return a, b


@triton.jit(do_not_specialize=["num_tokens", "num_frames"])
def _sum_rows(
    arcs: tl.tensor,
    starts: tl.tensor,
    a_and_b: tl.tensor,
    num_tokens: tl.tensor,
    num_frames: tl.tensor,
    WIDTH: tl.constexpr,
    PRECISE: tl.constexpr,
) -> None:
    """Compute a of an utterance (second program index 0) or b (1), which is a of the reversed lattice."""
    utterance, is_b = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lattice = is_b * tl.num_programs(0) + utterance
    lane = tl.arange(0, WIDTH)
    frame = tl.where(is_b == 1, num_frames - 1 - lane, lane)
    next_row = tl.where(is_b == 1, -num_frames, num_frames)
    source = arcs + (utterance * num_tokens + is_b * (num_tokens - 1)) * num_frames + frame
    target = a_and_b + (lattice * (num_tokens + 1) + is_b * num_tokens) * num_frames + frame

    row = tl.load(starts + lattice * num_frames + frame, mask=lane < num_frames, other=-float("inf"))
    tl.store(target, row, mask=lane < num_frames)
    arc = tl.load(source, mask=lane < tl.where(num_tokens > 0, num_frames, 0), other=0.0)
    for token in range(num_tokens):
        source += next_row
        target += next_row
        row += arc
        # Loaded before it is needed, so that the scan hides the latency.
        arc = tl.load(source, mask=lane < tl.where(token + 1 < num_tokens, num_frames, 0), other=0.0)
        row = tl.associative_scan(row, 0, _log_add_precise if PRECISE else _log_add)
        tl.store(target, row, mask=lane < num_frames)


@triton.jit
def _log_add(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    larger = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
    ratio = tl.exp(tl.where(x == y, 0.0, -tl.abs(x - y)).to(tl.float32))
    return larger + tl.log(1.0 + ratio).to(tl.float64)


@triton.jit
def _log_add_precise(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    larger = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
    return larger + tl.log(1.0 + tl.exp(tl.where(x == y, 0.0, -tl.abs(x - y))))
