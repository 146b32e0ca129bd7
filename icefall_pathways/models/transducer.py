"""The transducer: encoder, predictor, joiner and their losses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.constants import NUM_MEL_BINS
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.encoder import Encoder, encoder_lens
from icefall_pathways.models.initialization import scale_initial_values
from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.language_input import add_language_input
from icefall_pathways.models.losses import RnntLoss, boundaries, ctc_loss, pruned_loss, simple_loss
from icefall_pathways.models.predictor import Predictor

#: Layers with one row per token of the vocabulary.
VOCABULARY_LAYERS = ("decoder.embedding", "joiner.output_linear", "simple_am_proj", "simple_lm_proj", "ctc_output")

_PROJECTION_SCALE = 0.25


class TransducerLoss(NamedTuple):
    """Losses in nats, each summed over the batch.

    Attributes:
      simple: The smoothed simple loss.
      pruned: The pruned loss.
      ctc: The auxiliary CTC loss; None without a CTC head.
    """

    simple: Tensor
    pruned: Tensor
    ctc: Tensor | None


class Transducer(nn.Module):
    """A streaming transducer. Submodules have icefall's names: `decoder` is the predictor.

    Args:
      encoder_embed: The subsampling module.
      encoder: The encoder.
      decoder: The predictor.
      joiner: The joiner.
      ctc_head: Add an output layer for an auxiliary CTC loss.
    """

    def __init__(
        self,
        encoder_embed: nn.Module,
        encoder: Encoder,
        decoder: Predictor,
        joiner: Joiner,
        ctc_head: bool = False,
    ) -> None:
        super().__init__()
        vocab_size = joiner.output_linear.out_features
        self.encoder_embed = encoder_embed
        self.encoder = encoder
        self.decoder = decoder
        self.joiner = joiner
        self.simple_am_proj = nn.Linear(joiner.encoder_proj.in_features, vocab_size)
        self.simple_lm_proj = nn.Linear(joiner.decoder_proj.in_features, vocab_size)
        self.ctc_output = nn.Linear(joiner.encoder_proj.in_features, vocab_size) if ctc_head else None
        for projection in (joiner.encoder_proj, joiner.decoder_proj, self.simple_am_proj, self.simple_lm_proj):
            scale_initial_values(projection, _PROJECTION_SCALE)

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        prune_range: int = 5,
        am_scale: float = 0.0,
        lm_scale: float = 0.25,
        rnnt_loss: RnntLoss = "auto",
    ) -> TransducerLoss:
        """Compute the losses of a batch, in float32 even under autocast.

        Args:
          x: Features (N, T, 80).
          x_lens: Feature frames of each utterance (N,), on the CPU.
          y: Tokens (N, S), int64, padded with 0.
          y_lens: Tokens of each utterance (N,), on the CPU.
          prune_range: Predictor outputs to keep per frame in the pruned loss.
          am_scale: Weight of the encoder-only scores in the simple loss.
          lm_scale: Weight of the predictor-only scores in the simple loss.
          rnnt_loss: Implementation of the pruned RNN-T loss, see `resolve_rnnt_loss`.

        Raises:
          ValueError: An utterance has more tokens than encoder frames.
        """
        y = F.pad(y, (0, max(0, 1 - y.size(1))))  # k2 requires one column even if no utterance has a token
        lens = encoder_lens(x_lens)
        boundary = boundaries(lens, y_lens).to(x.device, non_blocking=True)  # first, since it may raise
        encoder_out, _ = self.encode(x, x_lens.to(x.device, non_blocking=True))
        decoder_out = self.decoder(F.pad(y, (1, 0), value=self.decoder.blank_id))
        am, lm = self.simple_am_proj(encoder_out), self.simple_lm_proj(decoder_out)
        joiner_am, joiner_lm = self.joiner.encoder_proj(encoder_out), self.joiner.decoder_proj(decoder_out)
        ctc_logits = None if self.ctc_output is None else self.ctc_output(encoder_out)
        with torch.amp.autocast_mode.autocast(x.device.type, enabled=False):
            simple, ranges = simple_loss(am, lm, y, boundary, prune_range, am_scale, lm_scale, rnnt_loss)
            ctc = None if ctc_logits is None else ctc_loss(ctc_logits, lens, y, y_lens)
            pruned = pruned_loss(self._join, joiner_am.float(), joiner_lm.float(), y, ranges, boundary, rnnt_loss)
        return TransducerLoss(simple, pruned, ctc)

    def _join(self, am: Tensor, lm: Tensor) -> Tensor:
        logits: Tensor = self.joiner(am, lm, project_input=False)
        return logits

    def encode(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole utterances; equal to `stream` over their chunks.

        Args:
          x: Features (N, T, 80). Padding after the end of an utterance is replaced by silence.
          x_lens: Feature frames of each utterance (N,).

        Returns:
          Frames (N, T', D) with T' = ceil(T / 4), and the valid frames of each utterance (N,), ceil(x_lens / 4).
        """
        return self.encoder.encode(self.encoder_embed, x, x_lens), encoder_lens(x_lens)

    @property
    def chunk_shift(self) -> int:
        """Feature frames by which a stream advances per chunk."""
        return self.encoder.chunk_shift

    @property
    def chunk_window(self) -> int:
        """Feature frames that a chunk reads: the shift and the look-ahead."""
        return self.encoder.chunk_window

    def init_states(self, batch_size: int, device: torch.device | str = "cpu") -> list[Tensor]:
        """Return the state of `batch_size` new streams: a list of tensors, documented by the encoder's class."""
        return self.encoder.init_states(self.encoder_embed, batch_size, device, self.joiner.encoder_proj.weight.dtype)

    def stream(self, x: Tensor, x_lens: Tensor, states: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode one chunk of every stream; the streams may have started at different times.

        Args:
          x: Features (N, chunk_window, 80); the next chunk of a stream starts `chunk_shift` frames later. Frames from
            `x_lens` on are replaced by silence.
          x_lens: Valid feature frames of each stream (N,); less than `chunk_window` only at the end of a stream.
          states: See `init_states`; not modified.

        Returns:
          Frames (N, chunk_shift / 4, D), the valid frames of each stream (N,), and the new states.
        """
        out, states = self.encoder.stream(self.encoder_embed, x, x_lens, states)
        return out, encoder_lens(x_lens).clamp(max=out.size(1)), states

    def stack_states(self, states: Sequence[list[Tensor]]) -> list[Tensor]:
        """Concatenate the states of streams, or of batches of streams, into one batch."""
        grouped = zip(zip(*states, strict=True), self.encoder.state_axes, strict=True)
        return [torch.cat(tensors, dim=axis) for tensors, axis in grouped]

    def unstack_states(self, states: list[Tensor]) -> list[list[Tensor]]:
        """Split the state of a batch into states of single streams (batches of one); the inverse of `stack_states`."""
        pieces = (tensor.split(1, dim=axis) for tensor, axis in zip(states, self.encoder.state_axes, strict=True))
        return [list(tensors) for tensors in zip(*pieces, strict=True)]


def build_model(config: ModelConfig, vocab_size: int, languages: Sequence[str] = ()) -> Transducer:
    """Create a model with initial weights.

    Args:
      config: The architecture.
      vocab_size: Number of tokens, including blank (0).
      languages: The languages with a vector of their own, if the language is an input; otherwise not used.

    Raises:
      ValueError: The language is an input, and there are no languages, or the encoder does not support it.
    """
    encoder_embed, encoder = config.encoder_spec.build(config.architecture.encoder, NUM_MEL_BINS)
    decoder_dim, joiner_dim = config.decoder_and_joiner_dim
    model = Transducer(
        encoder_embed,
        encoder,
        Predictor(vocab_size, decoder_dim, config.context_size, balanced=config.encoder_spec.balanced_predictor),
        Joiner(encoder.output_dim, decoder_dim, joiner_dim, vocab_size),
        ctc_head=config.ctc_head,
    )
    if config.language_input:  # last, so that the other initial weights do not depend on it
        add_language_input(model.encoder_embed, languages)
    return model
