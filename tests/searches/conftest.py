"""Small random predictors and joiners."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from public_numbers import load_numbers
from torch import nn

from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.predictor import Predictor


class Head(nn.Module):
    """A transducer without its encoder."""

    def __init__(self, vocab_size: int, encoder_dim: int = 8, dim: int = 8, context_size: int = 2) -> None:
        super().__init__()
        self.decoder = Predictor(vocab_size, dim, context_size)
        self.joiner = Joiner(encoder_dim, dim, dim, vocab_size)


@pytest.fixture(scope="session")
def make_head() -> Callable[..., Head]:
    """Build a head from its sizes and a seed, with logits spread out so that hypotheses compete."""

    def make(vocab_size: int, seed: int = 0, **sizes: int) -> Head:
        torch.manual_seed(seed)
        head = Head(vocab_size, **sizes).eval()
        with torch.no_grad():
            head.joiner.output_linear.weight *= 4
        return head

    return make


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """Reference data of icefall's searches: `model`, `encoder_out`, `lens` and the results."""
    numbers = load_numbers("decoding")
    model = Head(numbers["vocab_size"], numbers["encoder_dim"], numbers["decoder_dim"], numbers["context_size"])
    model.load_state_dict(numbers["state_dict"])
    return SimpleNamespace(
        model=model.eval(), encoder_out=numbers["enc"], lens=torch.tensor(numbers["enc_lens"]), **numbers
    )
