"""The pruned RNN-T loss.

"Pruned RNN-T for fast, memory-efficient ASR training" (Kuang et al., arXiv 2206.13236): a simple loss, whose joiner is
an addition, selects a few tokens per frame; the full joiner computes the loss on those. Both are computed by k2 or by
`icefall_pathways.models.rnnt`.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from icefall_pathways.errors import first_line, k2_error
from icefall_pathways.models import rnnt

RnntLoss = Literal["auto", "k2", "builtin"]

# Initial scale of the pruned loss, whose pruning bounds come from the simple loss, which is not trained yet.
_INITIAL_PRUNED_SCALE = 0.1


@cache
def resolve_rnnt_loss(choice: RnntLoss) -> Literal["k2", "builtin"]:
    """Return the implementation of the pruned RNN-T loss: the one chosen, or for "auto" k2 if it can be imported.

    Raises:
      ValueError: k2 is chosen and cannot be imported.
    """
    if choice == "builtin":
        return "builtin"
    try:
        import k2  # noqa: F401  # not at import time: the command line and decoding do not need it
    except ImportError as error:
        if choice == "k2":
            raise k2_error("--rnnt-loss k2", error, "--rnnt-loss builtin") from error
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"k2 is installed but cannot be imported ({first_line(error)})", stacklevel=2)
        return "builtin"
    return "k2"


def loss_scales(update: int, warm_updates: int, simple_loss_scale: float) -> tuple[float, float]:
    """Return the scales of the simple and the pruned loss.

    During warm-up they change linearly from 1 and 0.1 to `simple_loss_scale` and 1.

    Args:
      update: Index of the update, starting at 1.
      warm_updates: Updates of warm-up; 0 disables it.
      simple_loss_scale: Final scale of the simple loss.
    """
    progress = min(update / warm_updates, 1.0) if warm_updates > 0 else 1.0
    return 1.0 - (1.0 - simple_loss_scale) * progress, _INITIAL_PRUNED_SCALE + (1.0 - _INITIAL_PRUNED_SCALE) * progress


def boundaries(frame_lens: Tensor, y_lens: Tensor) -> Tensor:
    """Return the start and end of each utterance as k2 expects them: rows of (0, 0, tokens, frames).

    Args:
      frame_lens: Encoder frames of each utterance (N,), on the CPU, to avoid synchronization with another device.
      y_lens: Tokens of each utterance (N,), on the CPU.

    Returns:
      (N, 4), int64, on the CPU.

    Raises:
      ValueError: An utterance has more tokens than encoder frames, or no frame.
    """
    short = (frame_lens < y_lens.clamp(min=1)).nonzero().flatten().tolist()
    if short:
        cases = ", ".join(f"utterance {i} has {int(frame_lens[i])} for {int(y_lens[i])} tokens" for i in short)
        raise ValueError(
            f"too few encoder frames in the batch: {cases}; the loss needs one per token, so remove such "
            "utterances or use a larger vocabulary"
        )
    boundary = torch.zeros(y_lens.size(0), 4, dtype=torch.int64, device=y_lens.device)
    boundary[:, 2] = y_lens
    boundary[:, 3] = frame_lens
    return boundary


def simple_loss(
    am: Tensor,
    lm: Tensor,
    y: Tensor,
    boundary: Tensor,
    prune_range: int,
    am_scale: float,
    lm_scale: float,
    implementation: RnntLoss = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute the smoothed simple loss and the pruning ranges.

    Args:
      am: Token scores of the encoder alone (N, T, V).
      lm: Token scores of the predictor alone (N, S + 1, V).
      y: Tokens (N, S), int64.
      boundary: See `boundaries`.
      prune_range: Predictor outputs R to keep per frame, at least 2; at most S + 1 are kept.
      am_scale: Weight of the encoder-only scores in the loss.
      lm_scale: Weight of the predictor-only scores in the loss.
      implementation: See `resolve_rnnt_loss`.

    Returns:
      The loss, summed over the batch, and the indices of the kept predictor outputs (N, T, R).

    Raises:
      ValueError: `prune_range` is less than 2, with which no token can be emitted.
    """
    if prune_range < 2:
        raise ValueError(f"prune_range is {prune_range}: expected at least 2; with fewer no token can be emitted")
    if resolve_rnnt_loss(implementation) == "builtin":
        loss, px_grad, py_grad = rnnt.smoothed_rnnt_loss(am.float(), lm.float(), y, boundary, am_scale, lm_scale)
        return loss, rnnt.prune_ranges(px_grad, py_grad, boundary, prune_range)
    import k2

    loss, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
        lm=lm.float(),
        am=am.float(),
        symbols=y,
        termination_symbol=0,
        lm_only_scale=lm_scale,
        am_only_scale=am_scale,
        boundary=boundary,
        reduction="sum",
        return_grad=True,
    )
    ranges = k2.get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=prune_range)
    return loss, ranges


def pruned_loss(
    join: Callable[[Tensor, Tensor], Tensor],
    am: Tensor,
    lm: Tensor,
    y: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    implementation: RnntLoss = "auto",
) -> Tensor:
    """Return the pruned loss, summed over the batch.

    Args:
      join: Computes logits (N, T, R, V) from encoder frames and predictor outputs (N, T, R, J).
      am: Projected encoder frames (N, T, J).
      lm: Projected predictor outputs (N, S + 1, J).
      y: Tokens (N, S), int64.
      ranges: See `simple_loss`.
      boundary: See `boundaries`.
      implementation: See `resolve_rnnt_loss`.
    """
    if resolve_rnnt_loss(implementation) == "builtin":
        rows = rnnt.select_rows(lm, ranges)
        logits = join(am[:, :, None].expand_as(rows), rows)
        return rnnt.pruned_rnnt_loss(logits.float(), y, ranges, boundary)
    import k2

    logits = join(*k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges))
    loss: Tensor = k2.rnnt_loss_pruned(
        logits=logits.float(), symbols=y, ranges=ranges, termination_symbol=0, boundary=boundary, reduction="sum"
    )
    return loss


def ctc_loss(logits: Tensor, frame_lens: Tensor, y: Tensor, y_lens: Tensor) -> Tensor:
    """Return the CTC loss, summed over the batch; an utterance that CTC cannot align contributes 0.

    Args:
      logits: (N, T, V), blank first.
      frame_lens: Encoder frames of each utterance (N,), on the CPU, as torch requires.
      y: Tokens (N, S).
      y_lens: Tokens of each utterance (N,), on the CPU.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return torch.nn.functional.ctc_loss(log_probs, y, frame_lens, y_lens, blank=0, reduction="sum", zero_infinity=True)
