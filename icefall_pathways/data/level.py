"""Level normalization of log-mel features, without look-ahead: they do not depend on the gain of a recording."""

import math
from typing import Literal

import torch
from torch import Tensor

LevelNorm = Literal["none", "running-max"]
"""none: features as computed; running-max: see `LevelNormalizer`."""

_DECAY = 0.01  # nepers of energy per frame: 4.3 dB per second
_MIN_PEAK = -11.0  # energy of noise at -77 dBFS; quieter frames are silence, whatever preceded them
_RANGE = 10.0  # 43 dB; features further below the peak are replaced by silence
_REFERENCE = -2.0  # value of the peak: normalized features have the mean that the subsampling modules expect


class LevelNormalizer:
    """Subtract a running maximum of the frame energies from log-mel features, block by block.

    The energy of a frame is the log of the mean over its mel bins. The maximum decays, so that the normalization adapts
    to a lower level. A gain adds the same constant to all features and to the maximum, so it cancels, except where
    features are at the floor of the extraction; the range of normalized features is limited to exclude that floor.
    """

    def __init__(self) -> None:
        self._peak: Tensor | float = _MIN_PEAK

    def accept(self, features: Tensor) -> Tensor:
        """Return the normalized features of the next frames (..., T, F) of the streams, T >= 0."""
        if features.size(-2) == 0:
            return features
        energy = features.double().logsumexp(-1) - math.log(features.size(-1))
        decay = _DECAY * torch.arange(1, features.size(-2) + 1, dtype=energy.dtype, device=energy.device)
        peak = torch.maximum((energy + decay).cummax(-1).values, torch.as_tensor(self._peak).unsqueeze(-1))
        peak = (peak - decay).clamp(min=_MIN_PEAK)
        self._peak = peak[..., -1]
        return (features - peak.to(features).unsqueeze(-1)).clamp(min=-_RANGE) + _REFERENCE


def normalize_level(features: Tensor, method: LevelNorm) -> Tensor:
    """Return the features (..., T, F) of whole utterances, normalized by `method`."""
    return features if method == "none" else LevelNormalizer().accept(features)
