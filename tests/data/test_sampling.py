"""Arithmetic of training batches: permutations, passes, buckets, language draws, independence of the first update."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketer, estimate_duration_buckets

from icefall_pathways.data import sampling
from icefall_pathways.data.permutation import permute, stable_hash
from icefall_pathways.data.sampling import BatchStream, LanguageDraws, MonolingualSampler, SamplingConfig, SortedCuts

SEEDS = st.integers(0, 2**63 - 1)
SIZES = {"en": 90, "fr": 31, "it": 7}  # cuts


def test_hash_is_splitmix64():
    """The first outputs of the generator for the seed 1234567, as published with it."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(stable_hash(state)[0]) for state in states] == expected


@settings(deadline=None)
@given(st.integers(1, 300), SEEDS)
def test_permutation_maps_every_position_once(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**9), SEEDS), min_size=1, max_size=20))
def test_positions_are_mapped_independently_of_each_other(cases):
    sizes, keys = zip(*cases, strict=True)
    positions = [size // 2 for size in sizes]
    together = permute(positions, sizes, keys)
    assert together.tolist() == [int(permute([p], s, k)[0]) for p, s, k in zip(positions, sizes, keys, strict=True)]
    assert all(0 <= result < size for result, size in zip(together, sizes, strict=True))


def test_all_permutations_are_equally_likely():
    counts = Counter(tuple(permute(np.arange(4), 4, stable_hash(key))) for key in range(4800))
    assert len(counts) == 24 and min(counts.values()) > 140 and max(counts.values()) < 260


@st.composite
def streams(draw, short_first=None):
    """Return a stream of the batches of a language with any durations, and the durations by cut number."""
    durations = draw(st.lists(st.floats(0.1, 30.0), min_size=1, max_size=80))
    config = SamplingConfig(
        max_duration=draw(st.floats(5.0, 100.0)),
        num_buckets=draw(st.integers(1, 12)),
        shuffle=draw(st.booleans()),
        short_first=draw(st.booleans()) if short_first is None else short_first,
    )
    numbers = 1000 + np.arange(len(durations), dtype=np.uint32)  # of an index with other, unusable cuts
    durations = np.sort(durations)
    cuts = SortedCuts("en", numbers, durations)
    return BatchStream(cuts, config), dict(zip(numbers.tolist(), durations, strict=True)), config


@settings(deadline=None)
@given(streams(), SEEDS, st.integers(0, 5))
def test_a_pass_has_every_cut_once(stream, seed, epoch):
    batches, durations, _ = stream
    positions = epoch * batches.num_batches + np.arange(batches.num_batches)
    drawn = [n for batch in batches.cuts(positions, seed) for n in batch]
    assert sorted(drawn) == sorted(durations)


@settings(deadline=None)
@given(streams(), SEEDS, st.integers(0, 10**7))
def test_batches_do_not_depend_on_those_computed_with_them(stream, seed, start):
    batches, _, _ = stream
    positions = start + np.arange(20)
    assert batches.cuts(positions, seed) == [batches.cuts(position, seed)[0] for position in positions]


@settings(deadline=None)
@given(streams(), SEEDS)
def test_batches_fit_and_at_most_one_of_a_pass_is_incomplete(stream, seed):
    batches, durations, config = stream
    sizes = set()
    for batch in batches.cuts(np.arange(batches.num_batches), seed):
        longest = max(durations[n] for n in batch)
        assert len(batch) == 1 or longest * len(batch) <= config.max_duration
        sizes.add(len(batch))
    starts, batch_sizes = sampling.divide_into_buckets(
        np.array(list(durations.values())), config.max_duration, config.num_buckets
    )
    assert 1 <= len(starts) <= config.num_buckets + 21 and starts[0] == 0
    assert not (np.diff(starts, append=len(durations)) % batch_sizes)[1:].any()
    assert sizes <= {*batch_sizes, (starts[1] if len(starts) > 1 else len(durations)) % batch_sizes[0]}


@settings(deadline=None)
@given(streams(short_first=True), SEEDS)
def test_short_first_pass_is_sorted(stream, seed):
    batches, durations, _ = stream
    drawn = [n for batch in batches.cuts(np.arange(batches.num_batches), seed) for n in batch]
    assert [durations[n] for n in drawn] == sorted(durations.values())


def make_stream(durations, language="en", **options):
    durations = np.asarray(durations, float)
    order = np.argsort(durations, kind="stable")
    return BatchStream(SortedCuts(language, order.astype(np.uint32), durations[order]), SamplingConfig(**options))


def first_pass(stream, seed=1):
    return stream.cuts(np.arange(stream.num_batches), seed)


def test_passes_seeds_and_languages_have_different_orders():
    durations = np.linspace(1, 20, 500)
    stream, other = make_stream(durations), make_stream(durations, "fr")
    second_pass = stream.cuts(stream.num_batches + np.arange(stream.num_batches), 1)
    orders = [first_pass(stream), second_pass, first_pass(stream, 2), first_pass(other)]
    assert len({str(order) for order in orders}) == 4
    unshuffled = make_stream(durations, shuffle=False)
    assert first_pass(unshuffled) == unshuffled.cuts(unshuffled.num_batches + np.arange(unshuffled.num_batches), 1)


@pytest.fixture(scope="module")
def durations():
    """Return the durations of 5000 cuts, distributed as in MLS."""
    return np.random.default_rng(5).triangular(10, 14, 20, 5000)


def test_batches_mix_speakers(durations):
    """The manifest has one speaker after another."""
    speakers = np.arange(len(durations)) // 10
    shares = [len(set(speakers[batch])) / len(batch) for batch in first_pass(make_stream(durations))]
    assert np.mean(shares) > 0.95


def padding(batches, durations):
    """Return the share of padding in all batches."""
    longest = sum(len(batch) * max(durations[batch]) for batch in batches)
    return 1 - sum(durations[batch].sum() for batch in batches) / longest


@pytest.mark.parametrize("max_duration", [15.0, 30.0, 200.0])
def test_batches_have_no_more_padding_and_are_as_full_as_with_the_sampler_of_lhotse(durations, max_duration):
    if max_duration < 100:
        durations = durations / 4
    cuts = [MonoCut(str(i), 0, duration, 0) for i, duration in enumerate(durations)]
    bins = estimate_duration_buckets(cuts, 10)
    bucketer = DynamicBucketer(cuts, bins, 1, max_duration=max_duration, buffer_size=5000, shuffle=True, rng=Random(1))
    expected = [[int(cut.id) for cut in batch] for batch in bucketer]
    batches = first_pass(make_stream(durations, max_duration=max_duration))
    assert padding(batches, durations) <= padding(expected, durations)
    assert len(batches) <= 1.01 * len(expected)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(0, 300), st.integers(1, 60))
def test_language_counts_are_those_of_the_draws(seed, update, chunk):
    draws = LanguageDraws({"en": 5.0, "fr": 1.0, "it": 0.1}, 2.0, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_CHUNK", chunk)
        counts = draws.count(update)
    assert list(counts.values()) == np.bincount(draws.of_updates(1, update + 1), minlength=3).tolist()


def test_languages_are_drawn_in_proportion_to_hours_and_temperature():
    def share(temperature):
        return LanguageDraws({"en": 90.0, "it": 10.0}, temperature, 1).count(20_000)["it"] / 20_000

    assert share(1.0) == pytest.approx(0.1, abs=0.01)
    assert share(2.0) == pytest.approx(0.25, abs=0.01)
    assert share(1e6) == pytest.approx(0.5, abs=0.01)


def sampler(rank=0, world_size=1, start=0, num_updates=40, accum_grad=1, **options):
    streams = {code: make_stream(np.linspace(1, 9, size), code, max_duration=20.0) for code, size in SIZES.items()}
    draws = LanguageDraws(SIZES, 1.0, 3)
    return MonolingualSampler(streams, draws, 3, rank, world_size, start, num_updates, accum_grad, **options)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 39), st.integers(1, 4), st.integers(1, 3), st.data())
def test_batches_do_not_depend_on_the_first_update(start, world_size, accum_grad, data):
    rank = data.draw(st.integers(0, world_size - 1))
    whole = list(sampler(rank, world_size, accum_grad=accum_grad))
    assert list(sampler(rank, world_size, start, 40 - start, accum_grad)) == whole[start * accum_grad :]


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([(8, 8), (64, 1), (1, 64), (16, 4), (2, 32)]))
def test_distribution_of_an_update_over_ranks_does_not_change_it(distribution):
    world_size, accum_grad = distribution

    def updates(world_size, accum_grad):
        ranks = [list(sampler(rank, world_size, 5, 3, accum_grad)) for rank in range(world_size)]
        return [ranks[rank][i] for i in range(3 * accum_grad) for rank in range(world_size)]

    assert updates(world_size, accum_grad) == updates(64, 1)


def test_all_ranks_together_pass_over_every_cut_once():
    ranks = [list(sampler(rank, 3, num_updates=300, accum_grad=2)) for rank in range(3)]
    drawn = {code: [] for code in SIZES}
    for i in range(len(ranks[0])):
        for batches in ranks:
            drawn[batches[i].language] += batches[i].numbers
    for code, size in SIZES.items():
        epochs = [drawn[code][i : i + size] for i in range(0, len(drawn[code]) - size + 1, size)]
        assert len(epochs) > 3 and all(sorted(numbers) == list(range(size)) for numbers in epochs)


def test_offsets_move_the_position_in_the_stream():
    moved = list(sampler(offsets=dict.fromkeys(SIZES, 2)))
    streams = {code: make_stream(np.linspace(1, 9, size), code, max_duration=20.0) for code, size in SIZES.items()}
    positions = Counter(dict.fromkeys(SIZES, 2))
    for batch in moved:
        assert batch.numbers == streams[batch.language].cuts(positions[batch.language], 3)[0]
        positions[batch.language] += 1
