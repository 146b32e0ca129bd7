"""Pruning ranges: the predictor outputs that the pruned loss keeps in each frame."""

import torch
from torch import Tensor


def prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, prune_range: int) -> Tensor:
    """Return the consecutive predictor outputs with the largest occupation probability at each frame.

    The first index of a frame is 0 to R - 1 larger than in the previous frame, so that paths exist. It is 0 in the
    first frame, and the last frame of an utterance keeps the last predictor output.

    Args:
      px_grad: Occupation probabilities of the token arcs (N, S, T).
      py_grad: Occupation probabilities of the blank arcs (N, S + 1, T).
      boundary: Numbers of tokens and frames (N, 4), see the package.
      prune_range: Predictor outputs to keep; R is this number, but at most S + 1.

    Returns:
      Indices of predictor outputs (N, T, R), int64.
    """
    width = min(prune_range, py_grad.size(1))
    # Every path leaves a frame by a blank in one row. It is retained if this row is kept, unless it enters row `start`
    # by a token within this frame, since the row before is not kept.
    retained = py_grad.unfold(1, width, 1).sum(dim=3)
    retained[:, 1:] -= px_grad[:, : retained.size(1) - 1]
    start = retained.argmax(dim=1)
    frame = torch.arange(start.size(1), device=start.device)
    last_start = (boundary[:, 2, None] - width + 1).clamp(min=0)
    start = torch.where(frame < boundary[:, 3, None] - 1, start, last_start)
    start = _suffix_min(start)
    slack = _suffix_min((width - 1) * frame - start).clamp(min=0)
    start = (width - 1) * frame - slack
    return start[..., None] + torch.arange(width, device=start.device)


def _suffix_min(x: Tensor) -> Tensor:
    """Return the minimum of each element and those after it, along the last axis."""
    return x.flip(-1).cummin(dim=-1).values.flip(-1)
