import pytest
import torch
from every_kind import EveryKind, random_masks
from torch import Tensor

from icefall_pathways.pathways.masks import PathwayMasks


@pytest.fixture
def model() -> EveryKind:
    return EveryKind()


@pytest.fixture
def masks(model: EveryKind) -> PathwayMasks:
    return random_masks(model)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 8)
