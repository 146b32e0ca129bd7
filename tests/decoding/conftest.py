"""A transducer's predictor and joiner, small and random."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn


class _Predictor(nn.Module):
    def __init__(self, vocab_size: int, dim: int, context_size: int) -> None:
        super().__init__()
        self.blank_id, self.context_size = 0, context_size
        self.embedding = nn.Embedding(vocab_size, dim)
        self.conv = nn.Conv1d(dim, dim, context_size, groups=dim // 4, bias=False)

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        assert not need_pad
        embedded = self.embedding(y.clamp(min=0)) * (y >= 0)[..., None]
        return self.conv(embedded.transpose(1, 2)).transpose(1, 2).relu()


class _Joiner(nn.Module):
    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.decoder_proj = nn.Linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True) -> Tensor:
        assert not project_input
        return self.output_linear((encoder_out + decoder_out).tanh())


class Head(nn.Module):
    """A transducer without its encoder."""

    def __init__(self, vocab_size: int, encoder_dim: int = 8, dim: int = 8, context_size: int = 2) -> None:
        super().__init__()
        self.decoder = _Predictor(vocab_size, dim, context_size)
        self.joiner = _Joiner(encoder_dim, dim, dim, vocab_size)


@pytest.fixture(scope="session")
def make_head() -> Callable[..., Head]:
    """Make a head from its sizes, with a seed; logits are spread so that hypotheses compete."""

    def make(vocab_size: int, seed: int = 0, **sizes: int) -> Head:
        torch.manual_seed(seed)
        head = Head(vocab_size, **sizes).eval()
        with torch.no_grad():
            head.joiner.output_linear.weight *= 4
        return head

    return make


@pytest.fixture(scope="session")
def reference(fixtures_dir) -> SimpleNamespace:
    """The numbers of the public implementation's searches: `model`, `encoder_out`, `lens` and what was found."""
    numbers = torch.load(fixtures_dir / "decoding.pt")
    model = Head(numbers["vocab_size"], numbers["encoder_dim"], numbers["decoder_dim"], numbers["context_size"])
    model.load_state_dict(numbers["state_dict"])
    return SimpleNamespace(
        model=model.eval(), encoder_out=numbers["enc"], lens=torch.tensor(numbers["enc_lens"]), **numbers
    )
