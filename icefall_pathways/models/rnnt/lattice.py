"""Forward and backward variables of RNN-T lattices.

The nodes of a lattice are (s, t): s tokens emitted, t frames consumed. A token arc leads from (s, t) to (s + 1, t) with
log-probability px(s, t), a blank arc from (s, t) to (s, t + 1) with py(s, t). Paths lead from (0, 0) to (S, T); their
last arc is a blank.

With A(s, t) = py(s, 0) + ... + py(s, t - 1), the recursion of the forward variable along a row s

    alpha(s, t) = log(exp(alpha(s - 1, t) + px(s - 1, t)) + exp(alpha(s, t - 1) + py(s, t - 1)))

becomes a cumulative sum: a(s, t) = alpha(s, t) - A(s, t) is the logcumsumexp over t of a(s - 1, t) + d(s - 1, t) with
d(s, t) = A(s, t) + px(s, t) - A(s + 1, t). In the same way b(s, t) = beta(s, t) + A(s, t) is the logcumsumexp in the
direction of decreasing t of b(s + 1, t) + d(s, t). Both need one operator per row, for all utterances and frames; on
CUDA, a Triton kernel computes all rows. The differences of large sums need float64.
"""

import warnings
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

_LOG_ZERO = -float("inf")


class Paths(NamedTuple):
    """Statistics of the paths through a lattice, float64.

    Attributes:
      score: Log-probability of all paths of each utterance (N,).
      px_grad: Occupation probability of each token arc (N, S, T): the gradient of the score with respect to `px`.
      py_grad: Occupation probability of each blank arc (N, S + 1, T): the gradient of the score with respect to `py`.
    """

    score: Tensor
    px_grad: Tensor
    py_grad: Tensor


def sum_paths(px: Tensor, py: Tensor, boundary: Tensor, kept: Tensor | None = None) -> Paths:
    """Sum over the paths through the lattices of a batch.

    Args:
      px: Log-probabilities of the tokens (N, S, T); -inf is allowed.
      py: Log-probabilities of the blank (N, S + 1, T), finite inside the boundary.
      boundary: Numbers of tokens and frames (N, 4), see the package.
      kept: Nodes that paths may visit (N, S + 1, T), in each row consecutive frames; None: all.
    """
    num_tokens, last_frame = boundary[:, 2, None, None], boundary[:, 3, None, None] - 1
    row = torch.arange(py.size(1), device=py.device)[:, None]
    frame = torch.arange(py.size(2), device=py.device)
    kept_nodes = (row <= num_tokens) & (frame <= last_frame)
    if kept is not None:
        kept_nodes &= kept
    kept_arcs = kept_nodes[:, :-1] & kept_nodes[:, 1:]
    is_last = (row == num_tokens) & (frame == last_frame)
    # Padding rows: arcs of score 0 at the last frame lead to the last row, so that all paths end there.
    is_free = (row[:-1] >= num_tokens) & (frame == last_frame)

    py = py.double()
    blanks = py.masked_fill(~kept_nodes, 0.0)  # `arcs` is -inf there
    sums = blanks.cumsum(dim=2) - blanks
    arcs = (sums[:, :-1] + px.double() - sums[:, 1:]).masked_fill(~kept_arcs, _LOG_ZERO).masked_fill(is_free, 0.0)
    final = (sums + py).masked_fill(~(is_last & kept_nodes), _LOG_ZERO).amax(dim=(1, 2))
    start_of_b = final[:, None].expand_as(py[:, 0]).masked_fill(frame > last_frame[:, 0], _LOG_ZERO)
    starts = torch.stack([torch.zeros_like(start_of_b), start_of_b])
    kernels = _triton_kernels() if arcs.is_cuda else None
    a, b = kernels.forward_backward(arcs, starts, px.dtype) if kernels is not None else _forward_backward(arcs, starts)

    score = a[:, -1].gather(1, last_frame[:, 0])[:, 0] + final
    normalized_a = a - score[:, None, None]
    px_grad = (normalized_a[:, :-1] + arcs + b[:, 1:]).exp().masked_fill(~kept_arcs, 0.0)
    py_grad = is_last.double()
    py_grad[:, :, :-1] += (normalized_a[:, :, :-1] + b[:, :, 1:]).exp()
    return Paths(score, px_grad, py_grad)


def _forward_backward(arcs: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b (N, S + 1, T) as the module's docstring defines them, computed together.

    Args:
      arcs: d of the module's docstring (N, S, T).
      starts: The first row of a and the last row of b (2, N, T).
    """
    both = torch.stack([arcs, arcs.flip(1, 2)]).movedim(2, 0).contiguous()
    rows = [torch.stack([starts[0], starts[1].flip(1)])]
    for arcs_of_row in both.unbind():
        rows.append((rows[-1] + arcs_of_row).logcumsumexp(dim=2))
    a, b = torch.stack(rows, dim=2).unbind()
    return a, b.flip(1, 2)


@cache
def _triton_kernels() -> ModuleType | None:
    """Return the module of the CUDA kernels, or None if Triton is missing or, without a C compiler, does not work."""
    try:
        from icefall_pathways.models.rnnt import triton_kernels

        zeros = torch.zeros(2, 1, 1, dtype=torch.float64, device="cuda")
        triton_kernels.forward_backward(zeros, zeros, torch.float32)
    except Exception as error:  # a package, a compiler or header files are missing, each with an exception of its own
        warnings.warn(f"the RNN-T loss is slower, because Triton does not work: {error}", stacklevel=2)
        return None
    return triton_kernels
