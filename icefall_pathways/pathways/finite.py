"""Check of the weights that sub-networks use."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def check_finite(weights: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> None:
    """Check that weights are finite; entries that no language uses may have any value.

    Args:
      weights: Weights by parameter name.
      codes: Codes of the masked ones, see `PathwayMasks`.

    Raises:
      ValueError: A weight is NaN or infinite; the message names its parameter.
    """
    for name, weight in weights.items():
        invalid = ~weight.isfinite()
        if name in codes:
            invalid &= codes[name] != 0
        if count := int(invalid.sum()):
            raise ValueError(f"{name} has {count} NaN or infinite of {weight.numel()} values, expected finite ones")
