"""Bootstrap intervals and significance tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.decoding.significance import (
    bootstrap_p_value,
    draw_runs,
    error_rates,
    interval,
    matched_pairs_p_value,
    resample,
    resample_runs,
)

_counts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=6).map(np.array)


@settings(max_examples=50, deadline=None)
@given(_counts, st.integers(0, 99))
def test_bootstrap_test_sets_have_the_original_size(counts, seed):
    ones = np.column_stack([counts, np.ones(len(counts), dtype=int)])
    drawn = resample(ones, 1200, seed)
    assert drawn.shape == (1200, 3)
    assert (drawn[:, 2] == len(counts)).all()
    assert (drawn[:, 0] <= len(counts) * counts[:, 0].max()).all()
    np.testing.assert_array_equal(drawn, resample(ones, 1200, seed))


def test_groups_are_resampled_as_a_whole():
    counts = np.array([[[1, 0], [1, 0], [0, 1], [1, 0]]])
    drawn = resample_runs(counts, draw_runs(1, 300, 0), 0, groups=["a", "a", "b", "a"])
    assert {tuple(row) for row in drawn.tolist()} == {(6, 0), (3, 1), (0, 2)}


def test_drawn_runs_share_their_test_sets():
    generator = np.random.default_rng(3)
    first = generator.integers(0, 9, size=(6, 2))
    weights = draw_runs(3, 1200, 4)
    assert (weights.sum(axis=1) == 3).all() and weights.min() == 0 and weights.max() == 3
    drawn = resample_runs(np.stack([first, 10 * first, 100 * first]), weights, 4)
    factors = weights @ np.array([1, 10, 100])
    np.testing.assert_array_equal(drawn, factors[:, None] * resample(first, 1200, 4))


def test_intervals_have_their_nominal_coverage():
    generator = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        words = generator.integers(5, 30, size=150)
        difficulty = generator.beta(2, 8, size=150)  # 20 % errors on average, varying between utterances
        counts = np.column_stack([generator.binomial(words, difficulty), words])
        sums = resample(counts, 500, trial)
        low, high = interval(error_rates(sums[:, 0], sums[:, 1]))
        hits += low <= 20.0 <= high
    assert 0.90 <= hits / 200 <= 0.985


def test_p_values_of_known_samples():
    differences = np.array([1.0] * 97 + [-1.0] * 2)
    assert bootstrap_p_value(differences) == pytest.approx(0.06)
    assert bootstrap_p_value(-differences) == bootstrap_p_value(differences)
    assert bootstrap_p_value(np.zeros(100)) == 1.0
    # Mean 1, standard error 1/1.96: the normal distribution's two-sided 5 %.
    pairs = np.array([-1, 3] * 8)
    z = 1 / (pairs.std(ddof=1) / 4)
    assert z == pytest.approx(1.936, abs=1e-3)
    assert matched_pairs_p_value(pairs) == pytest.approx(0.0528, abs=1e-4)
    assert matched_pairs_p_value(np.array([1, -1])) == 1.0
    assert matched_pairs_p_value(np.array([1, 1, 1])) == 0.0


def test_equal_systems_are_rarely_significantly_different():
    generator = np.random.default_rng(7)
    small = {"bootstrap": 0, "pairs": 0}
    for trial in range(200):
        errors = generator.binomial(10, 0.2, size=(100, 2))
        differences = resample(errors, 500, trial) @ np.array([-1, 1])
        small["bootstrap"] += bootstrap_p_value(differences / 10) < 0.1
        small["pairs"] += matched_pairs_p_value(errors[:, 1] - errors[:, 0]) < 0.1
    assert all(10 <= count <= 32 for count in small.values()), small


def test_empty_reference_counts_as_one_unit():
    assert error_rates(np.array([3, 1]), np.array([0, 4])).tolist() == [300.0, 25.0]
