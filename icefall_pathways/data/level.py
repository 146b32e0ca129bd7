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
        self._level = torch.zeros(())

    def accept(self, features: Tensor) -> Tensor:
        """Return the normalized features of the next frames (..., T, F) of the streams, T >= 0."""
        if features.size(-2) == 0:
            return features
        features, levels = normalize_frames(features, self._level)
        self._level = levels[..., -1]
        return features


def normalize_frames(features: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize frames; see `LevelNormalizer`. The operations can be exported to ONNX.

    Args:
      features: Features (..., T, F), T > 0.
      level: Running maximum after the preceding frame (...), in nepers of energy above the lowest; 0 at the start.

    Returns:
      The normalized features (..., T, F), and the running maximum after each frame (..., T) in float64. A stream
      continues after frame t with `levels[..., t]`.
    """
    num_frames = int(features.size(-2))
    energy = features.double().logsumexp(-1) - (math.log(features.size(-1)) + _MIN_PEAK)
    decay = _DECAY * torch.arange(1, num_frames + 1, dtype=energy.dtype, device=energy.device)
    levels = torch.maximum(_running_max(energy + decay), level.to(energy).unsqueeze(-1))
    levels = (levels - decay).clamp(min=0)
    peak = (levels + _MIN_PEAK).to(features.dtype).unsqueeze(-1)
    return (features - peak).clamp(min=-_RANGE) + _REFERENCE, levels


def _running_max(x: Tensor) -> Tensor:
    """Return the maximum of x (..., T) up to each entry; `Tensor.cummax` cannot be exported to ONNX."""
    num_entries, covered = int(x.size(-1)), 1
    while covered < num_entries:
        x = torch.cat([x[..., :covered], torch.maximum(x[..., covered:], x[..., : num_entries - covered])], dim=-1)
        covered *= 2
    return x


def normalize_level(features: Tensor, method: LevelNorm) -> Tensor:
    """Return the features (..., T, F) of whole utterances, normalized by `method`."""
    return features if method == "none" else LevelNormalizer().accept(features)
