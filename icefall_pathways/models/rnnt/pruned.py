"""The pruned loss: the joiner computes logits for a few predictor outputs per frame."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icefall_pathways.models.rnnt.lattice import sum_paths


def select_rows(lm: Tensor, ranges: Tensor) -> Tensor:
    """Return the kept predictor outputs of each frame (N, T, R, J).

    Args:
      lm: Predictor outputs (N, S + 1, J).
      ranges: Indices of the kept predictor outputs (N, T, R), see `prune_ranges`.
    """
    first_row = lm.size(1) * torch.arange(len(lm), device=lm.device)[:, None, None]
    return torch.nn.functional.embedding(ranges + first_row, lm.flatten(0, 1))  # has a fast backward pass


def pruned_rnnt_loss(logits: Tensor, y: Tensor, ranges: Tensor, boundary: Tensor) -> Tensor:
    """Return the pruned loss, summed over the batch.

    Args:
      logits: (N, T, R, V), blank first, float32 or float64.
      y: Tokens (N, S), int64.
      ranges: Indices of the kept predictor outputs (N, T, R), see `prune_ranges`.
      boundary: Numbers of tokens and frames (N, 4), see the package.
    """
    with torch.amp.autocast_mode.autocast(logits.device.type, enabled=False):
        score: Tensor = _PrunedScore.apply(logits, y, ranges, boundary)
        return -score.sum()


class _PrunedScore(torch.autograd.Function):
    """Log-probability of the tokens of each utterance (N,).

    The gradient with respect to the logits of a node is the occupation probability of the arc of each token, minus the
    token's probability times the probability of visiting the node. Computing it here takes one tensor of the size of
    the logits, while the backward passes of logsumexp and gather take three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, y: Tensor, ranges: Tensor, boundary: Tensor) -> Tensor:
        log_probs = logits.log_softmax(dim=3)
        # The last row has no next token; its index is arbitrary, because the lattice has no such arc.
        next_token = torch.nn.functional.pad(y, (0, 1)).gather(1, ranges.flatten(1)).view_as(ranges)
        token_scores = log_probs.gather(3, next_token[..., None])[..., 0]
        shape = (*ranges.shape[:2], y.size(1) + 1)
        px = log_probs.new_zeros(shape).scatter_(2, ranges, token_scores).transpose(1, 2)
        py = log_probs.new_zeros(shape).scatter_(2, ranges, log_probs[..., 0]).transpose(1, 2)
        kept = torch.zeros(shape, dtype=torch.bool, device=ranges.device).scatter_(2, ranges, True).transpose(1, 2)
        paths = sum_paths(px[:, :-1], py, boundary, kept)
        px_grad = torch.nn.functional.pad(paths.px_grad, (0, 0, 0, 1)).transpose(1, 2).gather(2, ranges)
        py_grad = paths.py_grad.transpose(1, 2).gather(2, ranges)
        dtype = logits.dtype
        ctx.save_for_backward(log_probs, next_token, px_grad.to(dtype), py_grad.to(dtype))
        return paths.score.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        log_probs, next_token, px_grad, py_grad = ctx.saved_tensors
        px_grad, py_grad = grad[:, None, None] * px_grad, grad[:, None, None] * py_grad
        logits_grad = log_probs.exp().mul_(-(px_grad + py_grad)[..., None])
        logits_grad.scatter_add_(3, next_token[..., None], px_grad[..., None])
        logits_grad[..., 0] += py_grad
        return logits_grad, None, None, None
