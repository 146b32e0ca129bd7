"""One layer of a Zipformer."""

import torch
from torch import Tensor, nn

from icefall_pathways.models.initialization import scaled_linear
from icefall_pathways.models.zipformer.attention import AttentionWeights, NonlinAttention, SelfAttention
from icefall_pathways.models.zipformer.convolution import ConvolutionModule
from icefall_pathways.models.zipformer.functions import swoosh_l
from icefall_pathways.models.zipformer.norm import BiasNorm, Bypass
from icefall_pathways.models.zipformer.plan import Plan

STATES_PER_LAYER = 6
#: The axis of the streams in each of a layer's states.
STATE_AXES = (1, 1, 1, 1, 0, 0)


class FeedForward(nn.Module):
    """Linear, SwooshL, linear.

    Args:
      dim: Width.
      hidden_dim: Hidden width.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, hidden_dim)
        self.out_proj = scaled_linear(hidden_dim, dim, scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """The branch of frames (N, T, C)."""
        out: Tensor = self.out_proj(swoosh_l(self.in_proj(x)))
        return out


class ZipformerLayer(nn.Module):
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
    ) -> None:
        super().__init__()
        self.dim = dim
        self.kernel = kernel
        self.key_dim = num_heads * query_head_dim
        self.value_dim = num_heads * value_head_dim
        # Used by nothing; there because checkpoints of the public recipe have it.
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5))
        self.bypass = Bypass(dim)
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
        self.norm = BiasNorm(dim)

    def init_states(self, like: Tensor, batch_size: int, left: int) -> list[Tensor]:
        """The zero state of `batch_size` streams, of which the layer remembers `left` frames: in this order

        keys (left, N, H * q), what the non-linear attention attends to (1, N, left, 3 C // 4), values of both
        self-attentions (left, N, H * v), inputs of both convolutions (N, C, k // 2).
        """
        value, convolved = (left, batch_size, self.value_dim), (batch_size, self.dim, self.kernel // 2)
        nonlin = (1, batch_size, left, self.nonlin_attention.hidden_dim)
        shapes = [(left, batch_size, self.key_dim), nonlin, value, value, convolved, convolved]
        return [like.new_zeros(shape) for shape in shapes]

    def forward(self, x: Tensor, states: list[Tensor], plan: Plan) -> tuple[Tensor, list[Tensor]]:
        """Run the layer.

        Args:
          x: Frames (N, T, C).
          states: See `init_states`.
          plan: See `Plan`.

        Returns:
          Frames (N, T, C), and the new states.
        """
        key, nonlin, value1, value2, convolved1, convolved2 = states
        start, left = x, plan.left
        weights, key = self.self_attn_weights(x, key, plan)
        x = x + self.feed_forward1(x)
        branch, nonlin = self.nonlin_attention(x, weights[:, 0], nonlin, left)
        x = x + branch
        branch, value1 = self.self_attn1(x, weights, value1, left)
        x = x + branch
        branch, convolved1 = self.conv_module1(x, convolved1, plan)
        x = x + branch
        x = x + self.feed_forward2(x)
        x = self.bypass_mid(start, x)
        branch, value2 = self.self_attn2(x, weights, value2, left)
        x = x + branch
        branch, convolved2 = self.conv_module2(x, convolved2, plan)
        x = x + branch
        x = x + self.feed_forward3(x)
        x = self.bypass(start, self.norm(x))
        return x, [key, nonlin, value1, value2, convolved1, convolved2]
