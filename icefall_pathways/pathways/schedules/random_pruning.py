"""Random masks: the baseline for masks that a search finds."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules.iterative import OneShot


class RandomPruning(OneShot):
    """Keep random entries, with the granularity and the allocation of the other methods.

    The scores depend on the seed, the languages that share a mask, and the names and shapes of the parameters, not on
    weights, data, device or rank.

    Args:
      target_sparsity: Sparsity of the masks.
      seed: Random seed.

    Raises:
      ValueError: The sparsity is out of range.
    """

    needs_training = False

    def __init__(self, target_sparsity: float, seed: int) -> None:
        super().__init__(target_sparsity)
        self.method = "random"
        self._seed = seed

    def _scores(
        self, model: nn.Module, masks: PathwayMasks, languages: Sequence[str], gradients: LanguageGradients | None
    ) -> dict[str, Tensor]:
        return {name: self._random(name, code, languages) for name, code in masks.codes.items()}

    def _random(self, name: str, code: Tensor, languages: Sequence[str]) -> Tensor:
        key = f"{self._seed} {' '.join(languages)} {name}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        generator = torch.Generator(device="cpu").manual_seed(seed)
        return torch.rand(code.shape, generator=generator, device="cpu").to(code.device)
