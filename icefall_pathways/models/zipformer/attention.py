"""Attention weights, and the modules that apply them: self-attention and nonlinear attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.initialization import scaled_linear
from icefall_pathways.models.regularizers import Balancer, Schedule, Scheduled, Whiten, penalize_large_scores
from icefall_pathways.models.zipformer.attention_plan import AttentionPlan

# Score of masked sources: low enough, and within the range of float16.
_MASKED_SCORE = -1000.0

# Probabilities in training: of skipping the position scores, of dropping an entry of the positional encoding, and of
# penalizing large scores.
_POSITION_SKIP_RATE = Schedule((0, 0.5), (4000, 0.0))
_POSITION_DROPOUT = 0.15
_SCORE_PENALTY_PROBABILITY = 0.1


class PositionProjection(nn.Linear):
    """Projection of the positional encoding to keys; never pruned."""

    prunable = False


class AttentionWeights(Scheduled):
    """Multi-head attention weights, which a layer computes once and applies three times.

    A score is query times key, plus position query times the projected encoding of the relative position, without the
    factor 1/sqrt(d).

    Args:
      dim: Width of the input.
      pos_dim: Width of the positional encoding.
      num_heads: Number of heads H.
      query_head_dim: Width of queries and keys per head.
      pos_head_dim: Width of position queries per head.
    """

    def __init__(self, dim: int, pos_dim: int, num_heads: int, query_head_dim: int, pos_head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sizes = [num_heads * query_head_dim] * 2 + [num_heads * pos_head_dim]
        self.in_proj = scaled_linear(dim, sum(self.sizes), scale=query_head_dim**-0.25)
        self.balance_keys = Balancer(0.4, 0.6, 0.0, 100.0, probability=0.025)
        self.whiten_keys = Whiten(num_heads, Schedule((0, 3.0), (20000, 6.0)), grad_scale=0.025)
        self.linear_pos = scaled_linear(pos_dim, self.sizes[2], scale=0.05, bias=False, layer_class=PositionProjection)

    def forward(self, x: Tensor, cached_key: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        """Compute the attention weights.

        Args:
          x: Frames (N, T, C).
          cached_key: Keys of the preceding frames (left, N, H * q), with q = `query_head_dim`.
          plan: Masks and positional encoding.

        Returns:
          Weights (N, H, T, S), and the new `cached_key`.
        """
        query, key, position_query = self.in_proj(x).split(self.sizes, dim=-1)
        key = self.whiten_keys(self.balance_keys(key))
        key, cached_key = extend_cache(key, cached_key, plan.left)
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = torch.matmul(query, key.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 3, 0))
        if not self.sample(_POSITION_SKIP_RATE):
            scores = scores + self._position_scores(position_query, plan.positions)
        if scores.requires_grad and self.sample(_SCORE_PENALTY_PROBABILITY):
            scores = penalize_large_scores(scores, limit=25.0, penalty=1e-4)
        return scores.masked_fill(plan.attn_mask, _MASKED_SCORE).softmax(dim=-1), cached_key

    def _position_scores(self, query: Tensor, positions: Tensor) -> Tensor:
        """Return the products of position queries (N, T, H * p) and the projected encoding (R, D): (N, H, T, S)."""
        frames = int(query.size(1))  # int: a constant in exported graphs
        encoding = F.dropout(positions.to(query.dtype), _POSITION_DROPOUT, self.training)
        key = self.linear_pos(encoding).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0)
        heads = query.unflatten(-1, (self.num_heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)
        return relative_shift(torch.bmm(heads, key).unflatten(1, (-1, frames))).transpose(0, 1)


def relative_shift(scores: Tensor) -> Tensor:
    """Convert scores indexed by relative position to scores indexed by source frame.

    Args:
      scores: (..., T, S + T); column r is for the relative position r - S + 1 (source minus frame), as in
        `positional_encoding`.

    Returns:
      (..., T, S), a view: row i is `scores[..., i, T - 1 - i : T - 1 - i + S]`.
    """
    frames, columns = int(scores.size(-2)), int(scores.size(-1))  # int: constants in exported graphs
    flat = scores.flatten(-2).narrow(-1, frames - 1, frames * (columns - 1))
    return flat.unflatten(-1, (frames, columns - 1)).narrow(-1, 0, columns - frames)


class SelfAttention(nn.Module):
    """Self-attention with given attention weights.

    Args:
      dim: Width.
      num_heads: Number of heads H.
      value_head_dim: Width of values per head.
    """

    def __init__(self, dim: int, num_heads: int, value_head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, num_heads * value_head_dim)
        self.out_proj = scaled_linear(num_heads * value_head_dim, dim, scale=0.05)
        self.whiten = Whiten(1, Schedule((0, 7.5), (20000, 22.5)))

    def forward(self, x: Tensor, weights: Tensor, cached_val: Tensor, left: int) -> tuple[Tensor, Tensor]:
        """Return the weighted means of the values, projected.

        Args:
          x: Frames (N, T, C).
          weights: Attention weights (N, H, T, S).
          cached_val: Values of the `left` preceding frames (left, N, H * v).
          left: See `AttentionPlan`.

        Returns:
          The output without the residual (N, T, C), and the new `cached_val`.
        """
        value, cached_val = extend_cache(self.in_proj(x), cached_val, left)
        heads = value.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)
        attended = torch.matmul(weights, heads).transpose(1, 2).flatten(2)
        return self.whiten(self.out_proj(attended)), cached_val


class NonlinAttention(nn.Module):
    """Nonlinear attention: single-head attention over gated values, with a gated output.

    Args:
      dim: Width; the hidden width is three quarters of it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden_dim = 3 * dim // 4
        self.in_proj = nn.Linear(dim, 3 * self.hidden_dim)
        self.out_proj = scaled_linear(self.hidden_dim, dim, scale=0.05)
        self.balancer = Balancer(
            min_positive=Schedule((0, 0.25), (20000, 0.05)),
            max_positive=Schedule((0, 0.75), (20000, 0.95)),
            min_abs=0.5,
            max_abs=5.0,
        )
        self.whiten1 = Whiten(1, Schedule((0, 5.0), (20000, 10.0)))
        self.whiten2 = Whiten(1, Schedule((0, 5.0), (20000, 15.0)))

    def forward(self, x: Tensor, weights: Tensor, cached: Tensor, left: int) -> tuple[Tensor, Tensor]:
        """Return the gated weighted means of the gated values, projected.

        Args:
          x: Frames (N, T, C).
          weights: Attention weights of one head (N, T, S).
          cached: Gated values of the `left` preceding frames (1, N, left, hidden).
          left: See `AttentionPlan`.

        Returns:
          The output without the residual (N, T, C), and the new `cached`.
        """
        gate_in, value, gate_out = self.in_proj(x).chunk(3, dim=-1)
        gated = self.whiten1(value) * self.balancer(gate_in).tanh()
        if left:
            gated = torch.cat([cached[0], gated], dim=1)
            cached = gated[:, -left:].unsqueeze(0)
        return self.whiten2(self.out_proj(torch.matmul(weights, gated) * gate_out)), cached


def extend_cache(x: Tensor, cached: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Append frames (N, T, C) to the cache (left, N, C); return all frames (left + T, N, C) and the new cache.

    With time as the first axis, the matrix product of each head needs no copy.
    """
    if left == 0:
        return x.transpose(0, 1), cached
    joined = torch.cat([cached, x.transpose(0, 1)])
    return joined, joined[-left:]
