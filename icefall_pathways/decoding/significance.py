"""How sure an error rate is, and whether one system is better than another or only luckier."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

_BLOCK = 500  # test sets drawn at a time


def resample(counts: Counts, rounds: int, seed: int, groups: Sequence[str] | None = None) -> Counts:
    """Draw test sets of the same size, with replacement, and count on each.

    "Bootstrap estimates for confidence intervals in ASR performance evaluation" (Bisani and Ney, 2004). What one
    speaker says is not independent of what he says next; drawing whole `groups` of utterances allows for that.

    Args:
      counts: (utterances, K) such as errors and words.
      rounds: Test sets drawn.
      seed: The same seed gives the same test sets.
      groups: Of each utterance, what it is drawn together with, such as its speaker; None: it is drawn alone.

    Returns:
      (rounds, K) sums of the counts.
    """
    if groups is not None:
        _, places = np.unique(np.asarray(groups), return_inverse=True)
        grouped = np.zeros((places.max() + 1, counts.shape[1]), dtype=np.int64)
        np.add.at(grouped, places, counts)
        counts = grouped
    generator = np.random.default_rng(seed)
    drawn = [
        counts[generator.integers(len(counts), size=(min(_BLOCK, rounds - begin), len(counts)))].sum(axis=1)
        for begin in range(0, rounds, _BLOCK)
    ]
    return np.concatenate(drawn)


def error_rates(errors: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Errors per 100 words or characters; where there is none, as if there were one."""
    return 100.0 * errors / np.maximum(units, 1)


def interval(samples: NDArray[np.float64], level: float = 0.95) -> list[float]:
    """The range, low and high, that holds the middle `level` of the samples."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def bootstrap_p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided: twice the share of resampled differences on the rarer side of 0, which has half of those at 0."""
    below, above = np.count_nonzero(differences < 0), np.count_nonzero(differences > 0)
    rarer = min(below, above) + (len(differences) - below - above) / 2
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))


def matched_pairs_p_value(differences: NDArray[np.int64]) -> float:
    """Two-sided, of the mean difference in errors per utterance being 0, by the normal distribution.

    "Some statistical issues in the comparison of speech recognition algorithms" (Gillick and Cox, 1989), with
    utterances as segments; for less than some 30 utterances it is too optimistic.
    """
    mean = float(differences.mean())
    if len(differences) < 2 or mean == 0.0:
        return 1.0
    deviation = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return 0.0 if deviation == 0.0 else math.erfc(abs(mean) / deviation / math.sqrt(2.0))
