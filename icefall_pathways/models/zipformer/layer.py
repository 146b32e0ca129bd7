"""One layer of a Zipformer."""

import torch
from torch import Tensor, nn

from icefall_pathways.models.initialization import scaled_linear
from icefall_pathways.models.regularizers import (
    Balancer,
    Schedule,
    Scheduled,
    Scheduling,
    Whiten,
    drop_channels,
    drop_sequences,
    keep_sequences,
)
from icefall_pathways.models.zipformer.attention import AttentionWeights, NonlinAttention, SelfAttention
from icefall_pathways.models.zipformer.attention_plan import AttentionPlan
from icefall_pathways.models.zipformer.convolution import ConvolutionModule
from icefall_pathways.models.zipformer.functions import swoosh_l
from icefall_pathways.models.zipformer.norm import BiasNorm, Bypass

STATES_PER_LAYER = 6
#: The axis of the streams in each of a layer's states.
STATE_AXES = (1, 1, 1, 1, 0, 0)


# How often branches are left out in training, sequence by sequence, and how often the non-linear attention averages.
_SKIP = Schedule((0, 0.2), (4000, 0.05), (16000, 0.0))
_SKIP_FEED_FORWARD = Schedule((0, 0.1), (4000, 0.01), (50000, 0.0))
_AVERAGE = Schedule((0, 0.25), (4000, 0.025))

_DROPOUT = Schedule((0, 0.3), (20000, 0.1))


class FeedForward(Scheduled):
    """Linear, SwooshL, linear.

    Args:
      dim: Width.
      hidden_dim: Hidden width.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden_dim)
        self.hidden_balancer = Balancer(0.3, 1.0, 0.75, 5.0)
        self.out_proj = scaled_linear(hidden_dim, dim, scale=0.1)
        self.out_whiten = Whiten(1, Schedule((0, 7.5), (20000, 15.0)))

    def forward(self, x: Tensor) -> Tensor:
        """The branch of frames (N, T, C)."""
        hidden = drop_channels(swoosh_l(self.hidden_balancer(self.in_proj(x))), self.rate(_DROPOUT))
        out: Tensor = self.out_whiten(self.out_proj(hidden))
        return out


class ZipformerLayer(Scheduled):
    """One layer: three feed-forward, two self-attention, two convolution modules and one of non-linear attention.

    Args:
      dim: Width C.
      pos_dim: Width of the position code.
      num_heads: Attention heads H.
      query_head_dim: Width q of a head's queries and keys.
      pos_head_dim: Width of a head's position queries.
      value_head_dim: Width v of a head's values.
      feedforward_dim: Hidden width of the second feed-forward module; a quarter less in the first, more in the third.
      kernel: Kernel k of the convolutions.
      causal: Whether convolutions see no later chunk.
      skip_rate: How often the layer is left out in training, sequence by sequence.
    """

    def __init__(
        self,
        dim: int,
        pos_dim: int,
        num_heads: int,
        query_head_dim: int,
        pos_head_dim: int,
        value_head_dim: int,
        feedforward_dim: int,
        kernel: int,
        causal: bool,
        skip_rate: Scheduling = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.kernel = kernel
        self.key_dim = num_heads * query_head_dim
        self.value_dim = num_heads * value_head_dim
        # Used by nothing; there because checkpoints of the public recipe have it.
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))
        self.bypass = Bypass(dim, skip_rate)
        self.bypass_mid = Bypass(dim)
        self.self_attn_weights = AttentionWeights(dim, pos_dim, num_heads, query_head_dim, pos_head_dim)
        self.self_attn1 = SelfAttention(dim, num_heads, value_head_dim)
        self.self_attn2 = SelfAttention(dim, num_heads, value_head_dim)
        self.feed_forward1 = FeedForward(dim, 3 * feedforward_dim // 4)
        self.feed_forward2 = FeedForward(dim, feedforward_dim)
        self.feed_forward3 = FeedForward(dim, 5 * feedforward_dim // 4)
        self.nonlin_attention = NonlinAttention(dim)
        self.conv_module1 = ConvolutionModule(dim, kernel, causal)
        self.conv_module2 = ConvolutionModule(dim, kernel, causal)
        self.balancer_na = Balancer(0.3, 0.7, Schedule((0, 0.004), (4000, 0.02)), 100.0, probability=0.05)
        self.balancer_ff2 = Balancer(0.3, 0.7, Schedule((0, 0.0), (4000, 0.1)), 2.0, probability=0.05)
        self.balancer_ff3 = Balancer(0.3, 0.7, Schedule((0, 0.0), (4000, 0.2)), 4.0, probability=0.05)
        self.balancer1 = Balancer(0.45, 0.55, 0.2, 4.0)
        self.norm = BiasNorm(dim)
        self.balancer2 = Balancer(0.45, 0.55, 0.1, 4.0)
        self.whiten = Whiten(1, Schedule((0, 4.0), (20000, 12.0)))

    def get_init_states(self, like: Tensor, batch_size: int, left: int) -> list[Tensor]:
        """The zero state of `batch_size` streams, of which the layer remembers `left` frames: in this order

        keys (left, N, H * q), what the non-linear attention attends to (1, N, left, 3 C // 4), values of both
        self-attentions (left, N, H * v), inputs of both convolutions (N, C, k // 2).
        """
        value, convolved = (left, batch_size, self.value_dim), (batch_size, self.dim, self.kernel // 2)
        nonlin = (1, batch_size, left, self.nonlin_attention.hidden_dim)
        shapes = [(left, batch_size, self.key_dim), nonlin, value, value, convolved, convolved]
        return [like.new_zeros(shape) for shape in shapes]

    def forward(self, x: Tensor, states: list[Tensor], plan: AttentionPlan) -> tuple[Tensor, list[Tensor]]:
        """Run the layer.

        Args:
          x: Frames (N, T, C).
          states: See `get_init_states`.
          plan: See `AttentionPlan`.

        Returns:
          Frames (N, T, C), and the new states.
        """
        key, nonlin, value1, value2, convolved1, convolved2 = states
        start, left = x, plan.left
        attending = None  # which sequences use attention in this call
        if skip := self.rate(_SKIP):
            attending = keep_sequences(x, skip)
        weights, key = self.self_attn_weights(x, key, plan)
        x = x + self.feed_forward1(x)
        branch, nonlin = self.nonlin_attention(x, self._first_head(weights, plan), nonlin, left)
        x = _add(x, self.balancer_na(branch), attending)
        branch, value1 = self.self_attn1(x, weights, value1, left)
        x = _add(x, branch, attending)
        branch, convolved1 = self.conv_module1(x, convolved1, plan)
        x = x + drop_sequences(branch, skip)
        x = x + drop_sequences(self.balancer_ff2(self.feed_forward2(x)), self.rate(_SKIP_FEED_FORWARD))
        x = self.bypass_mid(start, x)
        branch, value2 = self.self_attn2(x, weights, value2, left)
        x = _add(x, branch, attending)
        branch, convolved2 = self.conv_module2(x, convolved2, plan)
        x = x + drop_sequences(branch, skip)
        x = x + drop_sequences(self.balancer_ff3(self.feed_forward3(x)), self.rate(_SKIP_FEED_FORWARD))
        x = self.bypass(start, self.norm(self.balancer1(x)))
        return self.whiten(self.balancer2(x)), [key, nonlin, value1, value2, convolved1, convolved2]

    def _first_head(self, weights: Tensor, plan: AttentionPlan) -> Tensor:
        """The weights (N, T, S) of the non-linear attention: at times, in training, a mean of all that may be seen."""
        if not self.sample(_AVERAGE):
            return weights[:, 0]
        seen = (~plan.blocked[:, 0]).to(weights.dtype).expand_as(weights[:, 0])
        return seen / seen.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _add(x: Tensor, branch: Tensor, which: Tensor | None) -> Tensor:
    """x plus a branch, in those sequences for which `which` (N, 1, 1) is 1; None is all of them."""
    return x + branch if which is None else x + branch * which
