"""A small model with all types of prunable layers, and random masks for it."""

import drawn_masks
import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

LANGUAGES = ("en", "fr", "it")


class AllLayerTypes(nn.Module):
    """Conv2d -> Conv1d -> Linear -> LSTM -> Linear over (N, T, 8) input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.conv2d = nn.Conv2d(1, 3, 3, padding=1)
        self.conv1d = nn.Conv1d(24, 6, 3, padding=1)
        self.linear = nn.Linear(6, 7)
        self.norm = nn.LayerNorm(7)
        self.lstm = nn.LSTM(7, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.gate = nn.Parameter(torch.ones(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d(x.unsqueeze(1)).transpose(1, 2).flatten(2)
        x = self.conv1d(x.transpose(1, 2)).transpose(1, 2)
        x = self.norm(self.linear(x))
        return self.lstm(x)[0] @ self.gate


# A weight of each layer, including input, hidden and backward weights of the LSTM.
LAYER_WEIGHTS = ("conv2d.weight", "conv1d.weight", "linear.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l1_reverse")


def random_masks(model: nn.Module, languages: tuple[str, ...] = LANGUAGES, density: float = 0.5) -> PathwayMasks:
    """Return random masks of all prunable weights; see `drawn_masks.random_masks`."""
    return drawn_masks.random_masks(model, languages, density=density)
