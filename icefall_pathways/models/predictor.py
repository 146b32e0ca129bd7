"""The stateless predictor (called decoder in icefall)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_pathways.models.regularizers import Balancer

_CHANNELS_PER_GROUP = 4


class Predictor(nn.Module):
    """A stateless predictor: an embedding and a convolution over the last `context_size` tokens.

    "RNN-Transducer with Stateless Prediction Network" (Ghodsi et al., 2020), with the convolution in groups.

    Args:
      vocab_size: Number of tokens, including blank.
      decoder_dim: Width; a multiple of 4.
      context_size: Number of previous tokens; 1 omits the convolution.
      blank_id: The token that starts every sequence.
      balanced: Apply balancers to the embedding and the output, as icefall's Zipformer recipe does.
    """

    def __init__(
        self, vocab_size: int, decoder_dim: int, context_size: int, blank_id: int = 0, balanced: bool = False
    ) -> None:
        super().__init__()
        self.context_size = context_size
        self.blank_id = blank_id
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        if context_size > 1:
            self.conv = nn.Conv1d(
                decoder_dim, decoder_dim, context_size, groups=decoder_dim // _CHANNELS_PER_GROUP, bias=False
            )
        self.embedding_balancer = _balancer() if balanced else nn.Identity()
        self.out_balancer = _balancer() if balanced else nn.Identity()

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Return the output at each token, computed from its context.

        Args:
          y: Tokens (N, U); negative ones are padding, which embeds to zero.
          need_pad: Prepend `context_size - 1` padding tokens, so that every token has an output; otherwise, the first
            `context_size - 1` tokens are context only.

        Returns:
          (N, U, decoder_dim), or (N, U - context_size + 1, decoder_dim) without `need_pad`.
        """
        embedded: Tensor = self.embedding_balancer(self.embedding(y.clamp(min=0)) * y.ge(0).unsqueeze(-1))
        if self.context_size == 1:
            return embedded
        if not need_pad and y.size(1) == self.context_size:
            return self._predict_next(embedded)
        if need_pad:
            embedded = F.pad(embedded, (0, 0, self.context_size - 1, 0))
        out: Tensor = self.out_balancer(torch.relu(self.conv(embedded.transpose(1, 2)).transpose(1, 2)))
        return out

    def _predict_next(self, embedded: Tensor) -> Tensor:
        """Return the output (N, 1, decoder_dim) of a single context (N, context_size, decoder_dim).

        The convolution is computed as a matrix product, which is twice as fast for a single output.
        """
        grouped = embedded.unflatten(2, (-1, _CHANNELS_PER_GROUP))
        weight = self.conv.weight.unflatten(0, (-1, _CHANNELS_PER_GROUP))
        return torch.relu(torch.einsum("ntgi,goit->ngo", grouped, weight).flatten(1).unsqueeze(1))


def _balancer() -> Balancer:
    return Balancer(min_positive=0.0, max_positive=1.0, min_abs=0.5, max_abs=1.0, probability=0.05)
