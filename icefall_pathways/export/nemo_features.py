"""Conversion of the log-mel features that sherpa-onnx computes for NeMo models to those of this project.

Both are log energies of 80 triangular filters, with other filters and windows. sherpa-onnx takes no options for them.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from icefall_pathways.data.features import FbankConfig

_LOWEST_ENERGY = float(np.finfo(np.float32).eps)  # as in Kaldi
_SLANEY_CORNER, _SLANEY_HERTZ, _SLANEY_STEP = 1000.0, 200 / 3, math.log(6.4) / 27  # the mel scale of librosa
_POVEY_EXPONENT = 0.85

Array = NDArray[np.float64]


def conversion_matrix(features: FbankConfig) -> Tensor:
    """Return the matrix (num_bins, num_bins) from energies of NeMo's filters to energies of the features.

    Each filter of the features is approximated by a sum of NeMo's filters with weights that are not negative, so that
    all energies stay positive.
    """
    fft_size = 2 ** math.ceil(math.log2(features.frame_length))
    hertz = np.arange(fft_size // 2 + 1) * features.sample_rate / fft_size
    nemo, kaldi = _nemo_filters(features, hertz), _kaldi_filters(features, hertz)
    hann = np.hanning(features.frame_length)
    gain = np.square(hann**_POVEY_EXPONENT).sum() / np.square(hann).sum()  # Kaldi's window is a power of NeMo's
    return torch.from_numpy(gain * np.stack([nnls(nemo.T, row)[0] for row in kaldi], axis=1)).float()


def convert_features(x: Tensor, matrix: Tensor) -> Tensor:
    """Convert NeMo's features (..., num_bins), not normalized, by a `conversion_matrix`."""
    return (x.exp() @ matrix).clamp(min=_LOWEST_ENERGY).log()


def _kaldi_filters(features: FbankConfig, hertz: Array) -> Array:
    """Return Kaldi's filters (num_bins, frequencies): triangles on its mel scale."""
    nyquist = features.sample_rate / 2
    high = features.high_freq if features.high_freq > 0 else nyquist + features.high_freq
    low_mel, high_mel = _kaldi_mel(np.array([features.low_freq, high]))
    filters = _triangles(np.linspace(low_mel, high_mel, features.num_bins + 2), _kaldi_mel(hertz))
    filters[:, -1] = 0.0  # Kaldi omits the highest frequency
    return filters


def _kaldi_mel(hertz: Array) -> Array:
    return 1127.0 * np.log1p(hertz / 700.0)


def _nemo_filters(features: FbankConfig, hertz: Array) -> Array:
    """Return NeMo's filters (num_bins, frequencies): triangles in Hz from 0 to the highest frequency, of unit area."""
    corner = _SLANEY_CORNER / _SLANEY_HERTZ
    highest = corner + math.log(features.sample_rate / 2 / _SLANEY_CORNER) / _SLANEY_STEP
    mel = np.linspace(0.0, highest, features.num_bins + 2)
    exponential = _SLANEY_CORNER * np.exp(_SLANEY_STEP * (np.maximum(mel, corner) - corner))
    edges = np.where(mel < corner, _SLANEY_HERTZ * mel, exponential)
    return _triangles(edges, hertz) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def _triangles(edges: Array, positions: Array) -> Array:
    """Return triangles (n, positions) with peaks at edges[1:-1] and zeros at their neighbors, for edges (n + 2,)."""
    left, peak, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.minimum((positions - left) / (peak - left), (right - positions) / (right - peak)).clip(min=0.0)
