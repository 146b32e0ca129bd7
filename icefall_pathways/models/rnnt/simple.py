"""The smoothed simple loss, whose joiner adds the scores of encoder and predictor."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_pathways.models.rnnt.lattice import Paths, sum_paths


def smoothed_rnnt_loss(
    am: Tensor, lm: Tensor, y: Tensor, boundary: Tensor, am_scale: float, lm_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the smoothed simple loss and the occupation probabilities of its lattice.

    Args:
      am: Token scores of the encoder alone (N, T, V), blank first, float32 or float64.
      lm: Token scores of the predictor alone (N, S + 1, V).
      y: Tokens (N, S), int64.
      boundary: Numbers of tokens and frames (N, 4), see the package.
      am_scale: Weight of the encoder-only scores.
      lm_scale: Weight of the predictor-only scores.

    Returns:
      The loss, summed over the batch, and the occupation probabilities of the token arcs (N, S, T) and of the blank
      arcs (N, S + 1, T), without gradients.
    """
    with torch.amp.autocast_mode.autocast(am.device.type, enabled=False):
        px, py = smoothed_scores(am, lm, y, am_scale, lm_scale)
        score, px_grad, py_grad = _SumPaths.apply(px, py, boundary)
        return -score.sum(), px_grad, py_grad


def smoothed_scores(am: Tensor, lm: Tensor, y: Tensor, am_scale: float, lm_scale: float) -> tuple[Tensor, Tensor]:
    """Return the interpolated log-probabilities of the tokens (N, S, T) and of the blank (N, S + 1, T).

    A log-probability is (1 - am_scale - lm_scale) * joint + am_scale * encoder-only + lm_scale * predictor-only. It
    is the sum of a term per frame, a term per predictor output, and the normalizer of the joint probabilities. The
    encoder-only probabilities replace every predictor output by the unigram distribution: the mean of all predictor
    distributions in the batch.

    Args: see `smoothed_rnnt_loss`.
    """
    joint_scale, tiny = 1.0 - am_scale - lm_scale, torch.finfo(am.dtype).tiny
    # Normalizers depend on the maxima, and need their gradients, if `tiny` exceeds the sum of the exponentials.
    am_max, lm_max = am.max(dim=2, keepdim=True).values, lm.max(dim=2, keepdim=True).values
    am_exp, lm_exp = (am - am_max).exp(), (lm - lm_max).exp()
    normalizer = (torch.bmm(lm_exp, am_exp.transpose(1, 2)) + tiny).log() + lm_max + am_max.transpose(1, 2)

    blank_and_tokens = torch.nn.functional.pad(y, (1, 0))[:, None]
    frame_term = am.gather(2, blank_and_tokens.expand(-1, am.size(1), -1)).transpose(1, 2) * (joint_scale + am_scale)
    token_term = lm[:, :-1].gather(2, y[..., None]) * (joint_scale + lm_scale)
    blank_term = lm[..., :1] * (joint_scale + lm_scale)
    if lm_scale:
        lm_normalizer = lm_scale * (lm_exp.sum(dim=2, keepdim=True).log() + lm_max)
        token_term, blank_term = token_term - lm_normalizer[:, :-1], blank_term - lm_normalizer
    if am_scale:
        unigram = (lm_exp / lm_exp.sum(dim=2, keepdim=True)).mean(dim=(0, 1)) + tiny
        am_normalizer = (am_exp @ unigram).log() + am_max[..., 0]
        frame_term = frame_term - am_scale * am_normalizer[:, None]
        unigram_term = am_scale * unigram.log()
        token_term, blank_term = token_term + unigram_term[y][..., None], blank_term + unigram_term[0]
    px = frame_term[:, 1:] + token_term - joint_scale * normalizer[:, :-1]
    py = frame_term[:, :1] + blank_term - joint_scale * normalizer
    return px, py


class _SumPaths(torch.autograd.Function):
    """Differentiable `sum_paths`; only the score has a gradient."""

    @staticmethod
    def forward(ctx: Any, px: Tensor, py: Tensor, boundary: Tensor) -> Paths:
        paths = sum_paths(px, py, boundary)
        ctx.save_for_backward(paths.px_grad.to(px.dtype), paths.py_grad.to(py.dtype))
        ctx.mark_non_differentiable(paths.px_grad, paths.py_grad)
        return Paths(paths.score.to(px.dtype), paths.px_grad, paths.py_grad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None]:
        px_grad, py_grad = ctx.saved_tensors
        grad = grad[:, None, None]
        return grad * px_grad, grad * py_grad, None
