"""One layer of a Zipformer."""

import torch
from torch import Tensor, nn

from icefall_pathways.models.initialization import scaled_linear
from icefall_pathways.models.regularizers import (
    Balancer,
    Schedule,
    Scheduled,
    ScheduledFloat,
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
#: Batch axis (streams) of each state tensor of a layer.
STATE_AXES = (1, 1, 1, 1, 0, 0)


# Probabilities in training: of skipping a branch, per sequence, and of uniform weights in nonlinear attention.
_SKIP_RATE = Schedule((0, 0.2), (4000, 0.05), (16000, 0.0))
_FEED_FORWARD_SKIP_RATE = Schedule((0, 0.1), (4000, 0.01), (50000, 0.0))
_UNIFORM_WEIGHTS_RATE = Schedule((0, 0.25), (4000, 0.025))

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
        """Return the output for frames (N, T, C), without the residual."""
        hidden = drop_channels(swoosh_l(self.hidden_balancer(self.in_proj(x))), self.rate(_DROPOUT))
        out: Tensor = self.out_whiten(self.out_proj(hidden))
        return out


class ZipformerLayer(Scheduled):
    """One layer: three feed-forward, two self-attention, two convolution modules and one nonlinear attention.

    Args:
      dim: Width C.
      pos_dim: Width of the positional encoding.
      num_heads: Attention heads H.
      query_head_dim: Width q of queries and keys per head.
      pos_head_dim: Width of position queries per head.
      value_head_dim: Width v of values per head.
      feedforward_dim: Hidden width of the second feed-forward module; three quarters of it in the first, five quarters
        in the third.
      kernel: Kernel size k of the convolutions.
      causal: Whether convolutions exclude later chunks.
      skip_rate: Probability of skipping the layer in training, per sequence.
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
        skip_rate: ScheduledFloat = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.kernel = kernel
        self.key_dim = num_heads * query_head_dim
        self.value_dim = num_heads * value_head_dim
        # Unused, but icefall's checkpoints contain it.
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
        """Return the state of `batch_size` new streams, zeros, with a left context of `left` frames.

        In this order: keys (left, N, H * q), gated values of the nonlinear attention (1, N, left, 3 C // 4), values of
        both self-attentions (left, N, H * v), inputs of both convolutions (N, C, k // 2).
        """
        value, conv = (left, batch_size, self.value_dim), (batch_size, self.dim, self.kernel // 2)
        nonlin = (1, batch_size, left, self.nonlin_attention.hidden_dim)
        shapes = [(left, batch_size, self.key_dim), nonlin, value, value, conv, conv]
        return [like.new_zeros(shape) for shape in shapes]

    def forward(self, x: Tensor, states: list[Tensor], plan: AttentionPlan) -> tuple[Tensor, list[Tensor]]:
        """Run the layer.

        Args:
          x: Frames (N, T, C).
          states: See `get_init_states`.
          plan: Masks and positional encoding.

        Returns:
          Frames (N, T, C), and the new states.
        """
        key, nonlin, value1, value2, conv1, conv2 = states
        start, left = x, plan.left
        kept_sequences = None  # 1 where a sequence uses attention in this call
        if skip := self.rate(_SKIP_RATE):
            kept_sequences = keep_sequences(x, skip)
        weights, key = self.self_attn_weights(x, key, plan)
        x = x + self.feed_forward1(x)
        branch, nonlin = self.nonlin_attention(x, self._nonlin_weights(weights, plan), nonlin, left)
        x = _add(x, self.balancer_na(branch), kept_sequences)
        branch, value1 = self.self_attn1(x, weights, value1, left)
        x = _add(x, branch, kept_sequences)
        branch, conv1 = self.conv_module1(x, conv1, plan)
        x = x + drop_sequences(branch, skip)
        x = x + drop_sequences(self.balancer_ff2(self.feed_forward2(x)), self.rate(_FEED_FORWARD_SKIP_RATE))
        x = self.bypass_mid(start, x)
        branch, value2 = self.self_attn2(x, weights, value2, left)
        x = _add(x, branch, kept_sequences)
        branch, conv2 = self.conv_module2(x, conv2, plan)
        x = x + drop_sequences(branch, skip)
        x = x + drop_sequences(self.balancer_ff3(self.feed_forward3(x)), self.rate(_FEED_FORWARD_SKIP_RATE))
        x = self.bypass(start, self.norm(self.balancer1(x)))
        return self.whiten(self.balancer2(x)), [key, nonlin, value1, value2, conv1, conv2]

    def _nonlin_weights(self, weights: Tensor, plan: AttentionPlan) -> Tensor:
        """Return the weights (N, T, S) of nonlinear attention: the first head's or, at random, uniform weights."""
        if not self.sample(_UNIFORM_WEIGHTS_RATE):
            return weights[:, 0]
        attended = (~plan.attn_mask[:, 0]).to(weights.dtype).expand_as(weights[:, 0])
        return attended / attended.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _add(x: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
    """Add a branch to the sequences where `mask` (N, 1, 1) is 1, or to all if it is None."""
    return x + branch if mask is None else x + branch * mask
