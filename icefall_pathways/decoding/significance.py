"""Confidence intervals of error rates and significance of differences between systems."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

_ROUNDS_PER_BLOCK = 500  # limits the memory of the drawn counts


def resample(counts: Counts, rounds: int, seed: int) -> Counts:
    """Draw bootstrap test sets of the same size, with replacement, and sum the counts of each.

    "Bootstrap estimates for confidence intervals in ASR performance evaluation" (Bisani and Ney, 2004).

    Args:
      counts: (utterances, K) counts, such as errors and words.
      rounds: Number of test sets.
      seed: Random seed.

    Returns:
      (rounds, K) sums of the counts.
    """
    return resample_runs(counts[None], draw_runs(1, rounds, seed), seed)


def draw_runs(num_runs: int, rounds: int, seed: int) -> Counts:
    """Draw `num_runs` of the runs of a system, with replacement, for each of `rounds` bootstrap samples.

    Returns:
      (rounds, num_runs) how often each run is drawn.
    """
    if num_runs == 1:
        return np.ones((rounds, 1), np.int64)
    return np.random.default_rng(seed).multinomial(num_runs, [1 / num_runs] * num_runs, size=rounds)


def resample_runs(counts: Counts, run_weights: Counts, seed: int, groups: Sequence[str] | None = None) -> Counts:
    """Draw bootstrap test sets, and sum the counts of each over the drawn runs, which all have the same test set.

    Utterances of one speaker are not independent; drawing whole `groups` of utterances accounts for that.

    Args:
      counts: (runs, utterances, K) counts.
      run_weights: (rounds, runs) how often each run is drawn, from `draw_runs`; the same for all languages of a system.
      seed: Random seed of the test sets.
      groups: Group of each utterance, such as its speaker; None: draw single utterances.

    Returns:
      (rounds, K) sums of the counts.
    """
    if groups is not None:
        _, indices = np.unique(np.asarray(groups), return_inverse=True)
        grouped = np.zeros((len(counts), indices.max() + 1, counts.shape[2]), dtype=np.int64)
        for run, run_counts in zip(grouped, counts, strict=True):
            np.add.at(run, indices, run_counts)
        counts = grouped
    generator = np.random.default_rng(seed)
    samples = []
    for start in range(0, len(run_weights), _ROUNDS_PER_BLOCK):
        weights = run_weights[start : start + _ROUNDS_PER_BLOCK]
        drawn = generator.integers(counts.shape[1], size=(len(weights), counts.shape[1]))
        sums = np.stack([run[drawn].sum(axis=1) for run in counts])
        samples.append(np.einsum("br,rbk->bk", weights, sums))
    return np.concatenate(samples)


def error_rates(errors: NDArray[np.int64], units: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the element-wise errors per 100 units (words or characters); 0 units count as 1."""
    return 100.0 * errors / np.maximum(units, 1)


def interval(samples: NDArray[np.float64], level: float = 0.95) -> list[float]:
    """Return the percentile interval [low, high] that contains the central `level` of the samples (N,)."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def bootstrap_p_value(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value: twice the fraction of resampled differences on the rarer side of 0.

    Args:
      differences: (N,) resampled differences; differences of 0 count half.
    """
    below, above = np.count_nonzero(differences < 0), np.count_nonzero(differences > 0)
    rarer = min(below, above) + (len(differences) - below - above) / 2
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))


def matched_pairs_p_value(differences: NDArray[np.int64]) -> float:
    """Return the two-sided p-value of a mean difference of 0 in errors per utterance, by the normal approximation.

    "Some statistical issues in the comparison of speech recognition algorithms" (Gillick and Cox, 1989), with
    utterances as segments; with fewer than about 30 utterances it is too optimistic.
    """
    mean = float(differences.mean())
    if len(differences) < 2 or mean == 0.0:
        return 1.0
    deviation = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return 0.0 if deviation == 0.0 else math.erfc(abs(mean) / deviation / math.sqrt(2.0))
