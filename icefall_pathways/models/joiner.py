"""The joiner: token logits from an encoder frame and a predictor output."""

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """Project both inputs, add them, and apply tanh and a linear layer onto the vocabulary. Never pruned.

    Args:
      encoder_dim: Width of the encoder's output.
      decoder_dim: Width of the predictor's output.
      joiner_dim: Width of the projections.
      vocab_size: Number of tokens, including blank.
    """

    prunable = False

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.decoder_proj = nn.Linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        """Compute the logits of the tokens.

        Args:
          encoder_out: (..., encoder_dim), or (..., joiner_dim) after `encoder_proj`.
          decoder_out: (..., decoder_dim), or (..., joiner_dim) after `decoder_proj`; the leading axes broadcast with
            those of `encoder_out`.
          project_input: Whether to apply the projections.

        Returns:
          Logits (..., vocab_size).
        """
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        logits: Tensor = self.output_linear(torch.tanh(encoder_out + decoder_out))
        return logits
