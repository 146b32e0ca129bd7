import math

import pytest
import torch
from all_layer_types import LANGUAGES, AllLayerTypes
from gpu import default_device
from hypothesis import given, settings
from hypothesis import strategies as st
from magnitude_pruning import prune_by_magnitude

from icefall_pathways.pathways.granularity import num_kept, parse_granularity
from icefall_pathways.pathways.masks import MasksError, MasksHeader, PathwayMasks

pytestmark = pytest.mark.usefixtures("device")

GROUPS = ["element", "row", "column", "block:2x2", "block:4x4", "block:3x*", "block:*x2"]
shapes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)


def scores_of(shape, seed):
    """Return scores with few distinct values, so that most are ties."""
    return torch.randint(0, 4, shape, generator=torch.Generator(default_device()).manual_seed(seed)).float()


def groups_of(granularity, shape):
    """Return the indices of each group in the flattened parameter, computed independently of the library."""
    height, width = shape[0], math.prod(shape[1:])
    rows, columns = 1, 1
    if granularity == "row":
        columns = width
    elif granularity == "column":
        rows, columns = height, math.prod(shape[2:])
    elif granularity.startswith("block:"):
        rows, columns = (
            size if given == "*" else int(given)
            for given, size in zip(granularity[6:].split("x"), (height, width), strict=True)
        )
    indices = torch.arange(height * width).view(height, width)
    return [
        indices[i : i + rows, j : j + columns].flatten()
        for i in range(0, height, rows)
        for j in range(0, width, columns)
    ]


def keep(granularity, scores, sparsity, candidates=None):
    candidates = torch.ones_like(scores, dtype=torch.bool) if candidates is None else candidates
    (kept,) = parse_granularity(granularity).select([scores], [candidates], sparsity)
    return kept


@pytest.mark.parametrize("granularity", GROUPS)
@settings(max_examples=40, deadline=None)
@given(shape=shapes, sparsity=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_groups_with_the_largest_means_are_kept(granularity, shape, sparsity, seed):
    scores = scores_of(shape, seed)
    groups = groups_of(granularity, shape)
    order = sorted(range(len(groups)), key=lambda i: (-float(scores.flatten()[groups[i]].mean()), i))
    largest = max(len(group) for group in groups)
    budget = max(num_kept(scores.numel(), sparsity) + largest // 2, largest)
    expected = torch.zeros(scores.numel(), dtype=torch.bool)
    for i in order:
        budget -= len(groups[i])
        if budget < 0:
            break
        expected[groups[i]] = True
    assert torch.equal(keep(granularity, scores, sparsity).flatten(), expected)


@pytest.mark.parametrize("granularity", GROUPS)
@settings(max_examples=40, deadline=None)
@given(shape=shapes, sparsity=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_number_of_entries_deviates_by_at_most_half_a_group(granularity, shape, sparsity, seed):
    kept = int(keep(granularity, scores_of(shape, seed), sparsity).sum())
    largest = max(len(group) for group in groups_of(granularity, shape))
    expected = num_kept(math.prod(shape), sparsity)
    assert abs(kept - expected) <= largest / 2 or (expected < largest and 0 < kept <= largest)


@pytest.mark.parametrize("granularity", [*GROUPS, "2:4", "1:3"])
@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000), steps=st.lists(st.floats(0, 0.9), min_size=1, max_size=4))
def test_pruning_is_monotonic_and_idempotent(granularity, shape, seed, steps):
    scores = scores_of(shape, seed)
    kept = torch.ones(shape, dtype=torch.bool)
    for sparsity in sorted(steps):
        # Pruned entries get the largest scores, which must not change the result.
        later = keep(granularity, scores + 10 * ~kept, sparsity, kept)
        assert not (later & ~kept).any()
        assert torch.equal(keep(granularity, scores, sparsity, later), later)
        kept = later


@settings(max_examples=60, deadline=None)
@given(shape=shapes, n=st.integers(1, 4), more=st.integers(1, 4), seed=st.integers(0, 1000))
def test_n_of_every_m_are_kept(shape, n, more, seed):
    m = n + more
    scores = scores_of(shape, seed)
    kept = keep(f"{n}:{m}", scores, 1 - n / m).flatten(1)
    rows = scores.flatten(1)
    for row in range(len(rows)):
        for start in range(0, rows.size(1), m):
            part = rows[row, start : start + m].tolist()
            count = n if len(part) == m else num_kept(len(part), 1 - n / m)
            order = sorted(range(len(part)), key=lambda i: (-part[i], i))
            assert sorted(order[:count]) == torch.nonzero(kept[row, start : start + m]).flatten().tolist()
    assert parse_granularity(f"{n}:{m}").matches(kept.view(shape))


def test_n_of_m_selects_only_candidates():
    scores = torch.tensor([[9.0, float("nan"), 9.0, -float("inf"), 1.0, 2.0, 9.0, 3.0]])
    candidates = torch.tensor([[False, True, False, False, True, True, False, True]])
    expected = [[False, True, False, False, False, True, False, True]]
    assert keep("2:4", scores, 0.5, candidates).tolist() == expected


def test_n_of_m_rounds_counts_at_lower_sparsities():
    scores = torch.arange(8.0).view(1, 8)
    counts = [int(keep("2:4", scores, sparsity).sum()) for sparsity in (0.1, 0.2, 0.36, 0.45, 0.5)]
    assert counts == [8, 6, 6, 4, 4]


def test_smaller_edge_groups_are_ranked_by_their_mean():
    scores = torch.tensor([[2.0, 2.0, 3.0]])  # blocks of two: the first has the larger sum, the edge the larger mean
    assert keep("block:1x2", scores, 0.66).tolist() == [[False, False, True]]


@pytest.mark.parametrize("granularity", GROUPS)
def test_groups_are_scored_on_the_device_of_the_parameter(granularity):
    """Edge groups are smaller."""
    groups, scores = parse_granularity(granularity), torch.empty(7, 5, device="meta")
    assert groups.group_means(scores).device.type == "meta"
    sizes = groups.group_sizes(scores)
    assert isinstance(sizes, int) or sizes.device.type == "meta"


def test_nan_is_the_lowest_score():
    scores = torch.tensor([[float("nan"), 0.0, 1.0, 2.0]])
    for granularity in ("element", "2:4"):
        assert keep(granularity, scores, 0.5).tolist() == [[False, False, True, True]]
    assert keep("block:1x2", scores, 0.5).tolist() == [[False, False, True, True]]


def test_at_least_one_group_is_kept():
    for granularity in ("element", "row", "column", "block:2x2"):
        assert keep(granularity, torch.ones(4, 4), 0.99).sum() == groups_of(granularity, (4, 4))[0].numel()


def test_rows_are_neurons_and_columns_are_input_channels():
    model = AllLayerTypes()
    for granularity, axis in (("row", 0), ("column", 1)):
        masks = PathwayMasks.dense(model, ["en"])
        masks.header = MasksHeader(("en",), granularity=granularity)
        prune_by_magnitude(model, masks, ["en"], 0.5)
        for name in ("linear.weight", "conv1d.weight", "lstm.weight_ih_l0"):
            mask = masks.mask(name, "en").transpose(0, axis).flatten(1)
            assert torch.equal(mask.any(1), mask.all(1))
            norms = model.get_parameter(name).abs().transpose(0, axis).flatten(1).sum(1)
            assert norms[mask.all(1)].min() >= norms[~mask.any(1)].max()
            assert int(mask.any(1).sum()) == num_kept(len(mask) + len(mask) % 2, 0.5)  # one more if the count is odd


@pytest.mark.parametrize("granularity", ["row", "block:2x2", "2:4"])
def test_masks_must_have_the_granularity_of_their_header(granularity, tmp_path):
    model = AllLayerTypes()
    masks = PathwayMasks.dense(model, LANGUAGES)
    masks.header = MasksHeader(LANGUAGES, granularity=granularity)
    prune_by_magnitude(model, masks, ["fr"], 0.5)
    masks.save(tmp_path / "masks.safetensors")
    loaded = PathwayMasks.load(tmp_path / "masks.safetensors")
    assert loaded.header.granularity == granularity
    mask = masks.mask("linear.weight", "fr")
    mask[0] = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.bool)
    masks.set_mask("linear.weight", "fr", mask)
    masks.save(tmp_path / "masks.safetensors")
    with pytest.raises(MasksError, match=rf"masks of linear.weight do not consist of groups of {granularity}"):
        PathwayMasks.load(tmp_path / "masks.safetensors")


def test_element_masks_cannot_be_pruned_in_blocks():
    scores = torch.rand(4, 4)
    with pytest.raises(ValueError, match="the masks split groups of block:2x2"):
        keep("block:2x2", scores, 0.7, keep("element", scores, 0.5))


def test_masks_of_different_granularity_cannot_be_merged():
    parts = [PathwayMasks.dense(AllLayerTypes(), [language]) for language in ("en", "fr")]
    parts[1].header = MasksHeader(("fr",), granularity="row")
    with pytest.raises(MasksError, match=r"granularity element \(en\) and of row \(fr\) cannot be merged"):
        PathwayMasks.merge(parts)


@pytest.mark.parametrize("granularity", [*GROUPS, "2:4"])
def test_granularity_text_round_trip(granularity):
    assert str(parse_granularity(granularity)) == granularity


@pytest.mark.parametrize("text", ["", "blocks", "block:4", "block:0x4", "4:2", "0:4", "2:2", "block:4x4x4"])
def test_invalid_granularity_is_rejected(text):
    with pytest.raises(ValueError, match="expected element, row, column, block:RxC"):
        parse_granularity(text)


def test_n_of_m_must_match_the_sparsity():
    parse_granularity("2:4").check_sparsity(0.5)
    with pytest.raises(ValueError, match=r"2:4 keeps 2 of every 4 .* sparsity of 0.5, not 0.7: use --sparsity 0.5"):
        parse_granularity("2:4").check_sparsity(0.7)
