import pytest
import torch
from all_layer_types import AllLayerTypes, random_masks
from torch import Tensor

from icefall_pathways.pathways.masks import PathwayMasks


@pytest.fixture
def model() -> AllLayerTypes:
    return AllLayerTypes()


@pytest.fixture
def masks(model: AllLayerTypes) -> PathwayMasks:
    return random_masks(model)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 8)
