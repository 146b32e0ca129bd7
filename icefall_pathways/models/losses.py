"""The pruned RNN-T loss.

"Pruned RNN-T for fast, memory-efficient ASR training" (Kuang et al., arXiv 2206.13236): a simple loss, whose joiner is
an addition, says which tokens matter at each frame; the joiner proper is run on those alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# While it warms up, the pruned loss counts this much: its pruning follows a simple loss that knows little yet.
_FIRST_PRUNED_SCALE = 0.1


def loss_scales(update: int, warm_updates: int, simple_loss_scale: float) -> tuple[float, float]:
    """How much the simple and the pruned loss count.

    From 1 and 0.1 they go linearly to `simple_loss_scale` and 1.

    Args:
      update: Number of the update, from 1 on.
      warm_updates: Updates that this takes; 0 gives the final scales at once.
      simple_loss_scale: The simple loss's final scale.

    Returns:
      The scales of the simple and of the pruned loss.
    """
    warmth = min(update / warm_updates, 1.0) if warm_updates > 0 else 1.0
    return 1.0 - (1.0 - simple_loss_scale) * warmth, _FIRST_PRUNED_SCALE + (1.0 - _FIRST_PRUNED_SCALE) * warmth


def boundaries(frame_lens: Tensor, y_lens: Tensor) -> Tensor:
    """Where each utterance begins and ends, as k2 wants it: rows of (0, 0, tokens, frames).

    Args:
      frame_lens: Encoder frames of each utterance (N,), on the CPU: a look at them must not wait for another device.
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
            f"too few encoder frames in the batch: {cases}; the loss needs one for each token, so leave out such "
            "utterances or use a larger vocabulary"
        )
    boundary = torch.zeros(y_lens.size(0), 4, dtype=torch.int64, device=y_lens.device)
    boundary[:, 2] = y_lens
    boundary[:, 3] = frame_lens
    return boundary


def simple_loss(
    am: Tensor, lm: Tensor, y: Tensor, boundary: Tensor, prune_range: int, am_scale: float, lm_scale: float
) -> tuple[Tensor, Tensor]:
    """The smoothed simple loss and where to prune.

    Args:
      am: Scores of the tokens from the encoder alone (N, T, V).
      lm: Scores of the tokens from the predictor alone (N, S + 1, V).
      y: Tokens (N, S), int64.
      boundary: See `boundaries`.
      prune_range: Predictor outputs R to keep for each frame, at least 2; at most S + 1 are kept.
      am_scale: Share of the encoder-only scores in the loss.
      lm_scale: Share of the predictor-only scores in the loss.

    Returns:
      The loss, summed over the batch, and the ranges (N, T, R): the predictor outputs that are kept.

    Raises:
      ValueError: `prune_range` is less than 2, which leaves no way to emit a token.
    """
    if prune_range < 2:
        raise ValueError(f"prune_range is {prune_range}: expected at least 2, or no token could be emitted")
    import k2  # not at import time: the command line and decoding do not need it

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
    join: Callable[[Tensor, Tensor], Tensor], am: Tensor, lm: Tensor, y: Tensor, ranges: Tensor, boundary: Tensor
) -> Tensor:
    """The pruned loss, summed over the batch.

    Args:
      join: From encoder frames and predictor outputs (N, T, R, J) to logits (N, T, R, V).
      am: Projected encoder frames (N, T, J).
      lm: Projected predictor outputs (N, S + 1, J).
      y: Tokens (N, S), int64.
      ranges: See `simple_loss`.
      boundary: See `boundaries`.
    """
    import k2

    logits = join(*k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges))
    loss: Tensor = k2.rnnt_loss_pruned(
        logits=logits.float(), symbols=y, ranges=ranges, termination_symbol=0, boundary=boundary, reduction="sum"
    )
    return loss


def ctc_loss(logits: Tensor, frame_lens: Tensor, y: Tensor, y_lens: Tensor) -> Tensor:
    """The CTC loss, summed over the batch; an utterance that CTC cannot align counts nothing.

    Args:
      logits: (N, T, V), the blank first.
      frame_lens: Encoder frames of each utterance (N,), on the CPU, where torch wants them.
      y: Tokens (N, S).
      y_lens: Tokens of each utterance (N,), on the CPU.
    """
    log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
    return torch.nn.functional.ctc_loss(log_probs, y, frame_lens, y_lens, blank=0, reduction="sum", zero_infinity=True)
