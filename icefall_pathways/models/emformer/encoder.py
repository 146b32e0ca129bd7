"""The streaming Emformer encoder; the streams of a batch may have started at different times.

"Emformer: Efficient Memory Transformer Based Acoustic Model for Low Latency Streaming Speech Recognition" (Shi et al.,
arXiv 2010.10759). Parameters have the names and shapes of `torchaudio.models.Emformer`, and the outputs are the same if
the convolution module is disabled.

An utterance is split into S segments. A segment and the R frames of right context after it are a *window* of
W = segment + R frames; all tensors are (N, S, W, D). Every window has its own copy of its right-context frames, so the
look-ahead is R frames for any number of layers. The past of a window (keys and values of the left context, memory
vectors, inputs of the convolution) comes from earlier windows and, for the first one, from the state. Thus an utterance
is one long chunk, and `forward` and `streaming_forward` run the same code. Masks are comparisons of positions, computed
once for all layers.

An utterance may end within a window. The right context then follows its last frame directly, and later frames of the
window are masked, so padding does not affect the shorter utterances of a batch. (torchaudio leaves a gap there: its
outputs equal these for single utterances, the longest ones, and lengths that are multiples of the segment.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.cpu_kernels import depthwise_conv2d
from icefall_pathways.models.emformer.windows import WindowIndex, WindowPlan
from icefall_pathways.models.initialization import scale_initial_values
from icefall_pathways.models.norm import LayerNorm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}

# Score of masked sources: far below any other, and finite, so that a query without sources is not NaN (it is unused).
_MASKED_SCORE = -1e8

# Initial scale of the last layer of each branch, in layers with a convolution module. Small branches leave the initial
# plateau of training, where predictions ignore the audio, in far fewer updates. Layers without the module are
# initialized as torchaudio's.
_BRANCH_SCALE = 0.1


class EmformerAttention(nn.Module):
    """Attention of each window's frames to the memory bank, the left context and the window itself.

    Args:
      input_dim: Width.
      num_heads: Attention heads.
      dropout: Dropout rate of the attention weights.
      weight_init_gain: Gain of the initial projections of queries, keys and values; None keeps torch's initialization.
      tanh_on_mem: Limit memory vectors by tanh; otherwise they are clamped to [-10, 10].

    Raises:
      ValueError: `input_dim` is not a multiple of `num_heads`.
    """

    def __init__(
        self, input_dim: int, num_heads: int, dropout: float, weight_init_gain: float | None, tanh_on_mem: bool
    ) -> None:
        super().__init__()
        if input_dim % num_heads != 0:
            raise ValueError(f"the encoder's width is {input_dim}: expected a multiple of its {num_heads} heads")
        self.num_heads = num_heads
        self.scaling = (input_dim // num_heads) ** -0.5
        self.dropout = dropout
        self.tanh_on_mem = tanh_on_mem
        self.emb_to_key_value = nn.Linear(input_dim, 2 * input_dim)
        self.emb_to_query = nn.Linear(input_dim, input_dim)
        self.out_proj = nn.Linear(input_dim, input_dim)
        if weight_init_gain is not None:
            nn.init.xavier_uniform_(self.emb_to_key_value.weight, gain=weight_init_gain)
            nn.init.xavier_uniform_(self.emb_to_query.weight, gain=weight_init_gain)

    def forward(
        self, x: Tensor, memory: Tensor | None, past_memory: Tensor, past: Tensor, plan: WindowPlan
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Compute the attention output and the memory vectors.

        Args:
          x: Windows (N * S, W, D), layer-normalized.
          memory: One vector per segment (N * S, 1, D); None without a memory bank.
          past_memory: Keys and values (N, M, 2D) of the M memory vectors before the first segment.
          past: Keys and values (N, L, 2D) of the L frames before the first segment.
          plan: Indices and mask.

        Returns:
          The output (N * S, W, D), the memory vectors for the next layer, and the new `past_memory` and `past`.
        """
        sources, past = plan.context.gather(self.emb_to_key_value(x), past)
        if memory is None or plan.memory is None:
            return self.out_proj(self._attend(self.emb_to_query(x), sources, plan.attn_mask)), None, past_memory, past
        earlier, past_memory = plan.memory.gather(self.emb_to_key_value(memory), past_memory)
        queries = torch.cat([x, x[:, : plan.segment_length].mean(dim=1, keepdim=True)], dim=1)
        attended = self._attend(self.emb_to_query(queries), torch.cat([earlier, sources], dim=1), plan.attn_mask)
        out, summary = self.out_proj(attended).split([x.size(1), 1], dim=1)
        memory = summary.tanh() if self.tanh_on_mem else summary.clamp(-10, 10)
        return out, memory, past_memory, past

    def _attend(self, query: Tensor, key_value: Tensor, attn_mask: Tensor) -> Tensor:
        """Apply multi-head attention of queries (N * S, Q, D) to keys and values (N * S, K, 2D): (N * S, Q, D)."""
        query_heads = (query * self.scaling).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        heads = key_value.unflatten(-1, (2, self.num_heads, -1))
        key, value = heads.permute(2, 0, 3, 1, 4)  # each (N * S, H, K, D / H)
        scores = torch.matmul(query_heads, key.transpose(2, 3)).float().masked_fill(attn_mask, _MASKED_SCORE)
        weights = F.dropout(scores.softmax(dim=-1).type_as(value), self.dropout, self.training)
        return torch.matmul(weights, value).transpose(1, 2).flatten(2)


class CausalConvolution(nn.Module):
    """Causal convolution module: layer norm, pointwise, GLU, depthwise, SiLU, pointwise, dropout.

    Args:
      dim: Width.
      kernel: Kernel size of the depthwise convolution, over a frame and the `kernel - 1` before it.
      dropout: Dropout rate of the output.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.pointwise_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Tensor, plan: WindowPlan) -> tuple[Tensor, Tensor]:
        """Convolve each window as the continuation of the segments before it.

        Args:
          x: Windows (N * S, W, D).
          past: The last inputs of the depthwise convolution (N, kernel - 1, D).
          plan: Indices.

        Returns:
          The output without the residual (N * S, W, D), and the new `past`.
        """
        gated = F.glu(self.pointwise_in(self.layer_norm(x)), dim=-1)
        sources, past = plan.convolution.gather(gated, past)
        kernels = self.depthwise.weight.unsqueeze(3)
        convolved = depthwise_conv2d(sources.unsqueeze(2), kernels, self.depthwise.bias, padding=(0, 0)).squeeze(2)
        convolved = convolved.contiguous()  # otherwise the next operation is slow
        return self.dropout(self.pointwise_out(F.silu(convolved))), past


class EmformerLayer(nn.Module):
    """Attention, an optional convolution module and a feed-forward module, each with a residual.

    See `Emformer` for the arguments, and `EmformerAttention` for `weight_init_gain`.
    """

    def __init__(
        self,
        input_dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: str,
        tanh_on_mem: bool,
        cnn_module_kernel: int,
        weight_init_gain: float | None,
    ) -> None:
        super().__init__()
        self.attention = EmformerAttention(input_dim, num_heads, dropout, weight_init_gain, tanh_on_mem)
        self.conv_module = CausalConvolution(input_dim, cnn_module_kernel, dropout) if cnn_module_kernel else None
        self.dropout = nn.Dropout(dropout)
        feed_forward_out = nn.Linear(ffn_dim, input_dim)
        self.pos_ff = nn.Sequential(
            LayerNorm(input_dim),
            nn.Linear(input_dim, ffn_dim),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            feed_forward_out,
            nn.Dropout(dropout),
        )
        self.layer_norm_input = LayerNorm(input_dim)
        self.layer_norm_output = LayerNorm(input_dim)
        if self.conv_module is not None:
            for last in (self.attention.out_proj, self.conv_module.pointwise_out, feed_forward_out):
                scale_initial_values(last, _BRANCH_SCALE)

    def forward(
        self, x: Tensor, memory: Tensor | None, past: tuple[Tensor, ...], plan: WindowPlan
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Run the layer.

        Args:
          x: Windows (N * S, W, D).
          memory: One vector per segment (N * S, 1, D); None without a memory bank.
          past: This layer's state: memory bank, left context, and inputs of the convolution.
          plan: Indices and mask.

        Returns:
          Windows (N * S, W, D), the memory vectors for the next layer, and the new `past`.
        """
        past_memory, past_left, past_conv = past
        attended, memory, past_memory, past_left = self.attention(
            self.layer_norm_input(x), memory, past_memory, past_left, plan
        )
        x = x + self.dropout(attended)
        if self.conv_module is not None:
            convolved, past_conv = self.conv_module(x, past_conv, plan)
            x = x + convolved
        x = x + self.pos_ff(x)
        return self.layer_norm_output(x), memory, (past_memory, past_left, past_conv)


class Emformer(nn.Module):
    """Emformer encoder. All lengths are in encoder frames.

    The state of N streams is four tensors: keys and values of the memory bank (N, layers, max_memory_size, 2D) and of
    the left context (N, layers, left_context_length, 2D), the last inputs of the convolutions
    (N, layers, kernel - 1, D), and the number of processed frames of each stream (N,), int64. The state of a new stream
    is zero.

    Args:
      input_dim: Width D.
      num_heads: Attention heads.
      ffn_dim: Hidden width of the feed-forward modules.
      num_layers: Layers.
      segment_length: Frames of a segment.
      dropout: Dropout rate of all modules.
      activation: Activation of the feed-forward modules: relu, gelu or silu.
      left_context_length: Frames before a segment that it attends to.
      right_context_length: Frames R after a segment that it attends to.
      max_memory_size: Memory vectors (one per earlier segment) that a segment attends to; 0 disables the memory bank.
      tanh_on_mem: Limit memory vectors by tanh; otherwise they are clamped to [-10, 10].
      cnn_module_kernel: Kernel of the convolution module in every layer; 0 disables it.
      weight_init_scale_strategy: Scale of the initial projections of queries, keys and values: "depthwise" decreases
        it with depth, "constant" does not, None keeps torch's initialization.

    Raises:
      ValueError: The activation or the strategy is unknown, or `input_dim` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        input_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        segment_length: int,
        dropout: float = 0.0,
        activation: str = "relu",
        left_context_length: int = 0,
        right_context_length: int = 0,
        max_memory_size: int = 0,
        tanh_on_mem: bool = False,
        cnn_module_kernel: int = 0,
        weight_init_scale_strategy: str | None = "depthwise",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        self.input_dim = input_dim
        self.segment_length = segment_length
        self.left_context_length = left_context_length
        self.right_context_length = right_context_length
        self.max_memory_size = max_memory_size
        self.cnn_module_kernel = cnn_module_kernel
        self.emformer_layers = nn.ModuleList(
            EmformerLayer(
                input_dim,
                num_heads,
                ffn_dim,
                dropout,
                activation,
                tanh_on_mem,
                cnn_module_kernel,
                gain,
            )
            for gain in _weight_init_gains(weight_init_scale_strategy, num_layers)
        )

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole utterances.

        Args:
          x: Frames (N, T + R, D): R frames of right context follow each utterance's last frame.
          lens: Frames of each utterance without right context (N,), at most T.

        Returns:
          Frames (N, T, D), where those from `lens` on are undefined; and `lens`.
        """
        frames = x.size(1) - self.right_context_length
        num_segments = max(1, math.ceil(frames / self.segment_length))
        x = F.pad(x, (0, 0, 0, num_segments * self.segment_length - frames))
        windows = x.unfold(1, self.segment_length + self.right_context_length, self.segment_length).transpose(2, 3)
        out, _ = self._run(windows, lens, self.get_init_states(x.size(0), x.device, x.dtype))
        return out[:, :frames], lens

    def get_init_states(
        self, batch_size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        """Return the state of `batch_size` new streams."""
        layers, dim = len(self.emformer_layers), self.input_dim
        sizes = (
            (self.max_memory_size, 2 * dim),
            (self.left_context_length, 2 * dim),
            (max(self.cnn_module_kernel - 1, 0), dim),
        )
        states = [torch.zeros(batch_size, layers, *size, device=device, dtype=dtype) for size in sizes]
        return [*states, torch.zeros(batch_size, dtype=torch.int64, device=device)]

    def streaming_forward(self, x: Tensor, lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of every stream.

        Args:
          x: Frames (N, segment_length + R, D): R frames of right context follow each stream's `lens` frames.
          lens: Frames without right context (N,), at most `segment_length`. Fewer are allowed at the end of a stream,
            whose new state is undefined.
          states: The state of the streams; see the class. It is not modified.

        Returns:
          Frames (N, segment_length, D), where those from `lens` on are undefined; `lens`; and the new state.

        Raises:
          ValueError: A chunk does not have `segment_length` + R frames.
        """
        window = self.segment_length + self.right_context_length
        if x.size(1) != window:
            raise ValueError(
                f"a chunk has {x.size(1)} frames: expected {window}, which are the segment's {self.segment_length} "
                f"and {self.right_context_length} of right context"
            )
        out, states = self._run(x.unsqueeze(1), lens, states)
        return out, lens, states

    def _run(self, x: Tensor, lens: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Encode windows (N, S, W, D); return frames (N, S * segment_length, D) and the new state."""
        *pasts, processed_lens = states
        batch_size, num_segments = x.size(0), int(x.size(1))  # int: a constant in exported graphs
        plan = self._plan(num_segments, lens, processed_lens)
        x = x.flatten(0, 1)
        memory = x[:, : plan.segment_length].mean(dim=1, keepdim=True) if plan.memory else None
        new_pasts = []
        for i, layer in enumerate(self.emformer_layers):
            x, memory, past = layer(x, memory, tuple(tensor[:, i] for tensor in pasts), plan)
            new_pasts.append(past)
        out = x[:, : plan.segment_length].reshape(batch_size, -1, x.size(2))
        new_states = [torch.stack(tensors, dim=1) for tensors in zip(*new_pasts, strict=True)]
        return out, [*new_states, processed_lens + out.size(1)]

    def _plan(self, num_segments: int, lens: Tensor, processed_lens: Tensor) -> WindowPlan:
        segment_length, device = self.segment_length, lens.device
        window_length, past_inputs = segment_length + self.right_context_length, max(self.cnn_module_kernel - 1, 0)
        memory = None
        if self.max_memory_size:
            memory = WindowIndex.make(num_segments, 1, 1, self.max_memory_size, False, device)
        return WindowPlan(
            segment_length,
            memory,
            context=WindowIndex.make(
                num_segments, segment_length, window_length, self.left_context_length, True, device
            ),
            convolution=WindowIndex.make(num_segments, segment_length, window_length, past_inputs, True, device),
            attn_mask=self._attn_mask(num_segments, lens, processed_lens),
        )

    def _attn_mask(self, num_segments: int, lens: Tensor, processed_lens: Tensor) -> Tensor:
        """Return the attention mask of each window; see `WindowPlan`.

        Sources are the memory bank and the left context, oldest first, masked before the start of the stream; and the
        frames of the window, masked after the end of the utterance and its right context.
        """
        segment_length, device = self.segment_length, lens.device
        starts = torch.arange(num_segments, device=device) * segment_length
        before = (processed_lens.unsqueeze(1) + starts)[..., None]  # frames of the stream before each segment (N, S, 1)
        valid = (lens.unsqueeze(1) - starts).clamp(0, segment_length)[..., None] + self.right_context_length
        distance_memory = torch.arange(self.max_memory_size, 0, -1, device=device)
        distance_left = torch.arange(self.left_context_length, 0, -1, device=device)
        positions = torch.arange(segment_length + self.right_context_length, device=device)
        attn_mask = torch.cat(
            [distance_memory * segment_length > before, distance_left > before, positions >= valid], dim=-1
        ).flatten(0, 1)[:, None, None]
        if self.max_memory_size:
            # The last query computes this segment's memory vector and does not attend to earlier memory vectors.
            summary_mask = torch.zeros(positions.numel() + 1, attn_mask.size(-1), dtype=torch.bool, device=device)
            summary_mask[-1, : self.max_memory_size] = True
            attn_mask = attn_mask | summary_mask
        return attn_mask


def _weight_init_gains(strategy: str | None, num_layers: int) -> list[float | None]:
    """Return the gain of each layer; see `Emformer`."""
    if strategy is None:
        return [None] * num_layers
    if strategy == "constant":
        return [1.0 / math.sqrt(2)] * num_layers
    if strategy == "depthwise":
        return [1.0 / math.sqrt(i + 1) for i in range(num_layers)]
    raise ValueError(f"weight_init_scale_strategy is {strategy!r}: expected 'depthwise', 'constant' or None")
