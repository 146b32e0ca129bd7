import pytest
import torch
from all_layer_types import LANGUAGES, AllLayerTypes
from hypothesis import given, settings
from hypothesis import strategies as st
from magnitude_pruning import prune_by_magnitude
from torch import nn

from icefall_pathways.pathways.granularity import num_kept
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.pathways.selection import top_k

pytestmark = pytest.mark.usefixtures("device")

# Few distinct values, so that most are ties.
scores = st.lists(st.sampled_from([0.0, -0.0, 0.5, -1.0, 1.0, 2.0, float("nan")]), min_size=1, max_size=50)


@settings(max_examples=200, deadline=None)
@given(values=scores, data=st.data())
def test_top_k_selects_exactly_k_candidates(values, data):
    candidates = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    kept = data.draw(st.integers(0, len(values)))
    mask = top_k(torch.tensor(values), candidates, kept)
    assert int(mask.sum()) == min(kept, int(candidates.sum()))
    assert not (mask & ~candidates).any()


@settings(max_examples=200, deadline=None)
@given(values=scores, data=st.data())
def test_top_k_selects_the_largest_and_breaks_ties_by_index(values, data):
    kept = data.draw(st.integers(0, len(values)))
    mask = top_k(torch.tensor(values), torch.ones(len(values), dtype=torch.bool), kept)
    order = sorted(range(len(values)), key=lambda i: (-values[i] if values[i] == values[i] else float("inf"), i))
    assert sorted(order[:kept]) == torch.nonzero(mask).flatten().tolist()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 0.9])
def test_layer_wise_pruning_meets_the_sparsity_of_every_tensor(model, sparsity):
    masks = PathwayMasks.dense(model, LANGUAGES)
    prune_by_magnitude(model, masks, ["fr"], sparsity)
    for name, code in masks.codes.items():
        assert int(masks.mask(name, "fr").sum()) == num_kept(code.numel(), sparsity)
        assert masks.mask(name, "en").all()


def test_magnitude_ignores_the_sign():
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-3.0, 1.0, 2.0, -0.5]]))
    masks = PathwayMasks.dense(layer, ["en"])
    prune_by_magnitude(layer, masks, ["en"], 0.5)
    assert masks.mask("weight", "en").tolist() == [[True, False, True, False]]


def test_equal_magnitudes_are_kept_in_index_order(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    masks = PathwayMasks.dense(model, LANGUAGES)
    prune_by_magnitude(model, masks, ["en"], 0.5)
    for name, code in masks.codes.items():
        expected = torch.arange(code.numel()) < num_kept(code.numel(), 0.5)
        assert torch.equal(masks.mask(name, "en").flatten(), expected)


def test_pruned_entries_of_large_magnitude_stay_pruned(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    prune_by_magnitude(model, masks, ["en"], 0.5)
    pruned = {name: ~masks.mask(name, "en") for name in masks.names}
    with torch.no_grad():
        for name in masks.names:
            model.get_parameter(name)[pruned[name]] = 1e6
    prune_by_magnitude(model, masks, ["en"], 0.7)
    for name in masks.names:
        assert not (masks.mask(name, "en") & pruned[name]).any()
        assert int(masks.mask(name, "en").sum()) == num_kept(pruned[name].numel(), 0.7)


def test_language_agnostic_pruning_gives_one_mask(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    prune_by_magnitude(model, masks, LANGUAGES, 0.6)
    for name in masks.names:
        assert torch.equal(masks.mask(name, "en"), masks.mask(name, "it"))
    assert masks.overlap("en", "fr") == 1
    assert masks.sparsity("en") == pytest.approx(0.6, abs=0.01)


def test_pruning_different_masks_together_is_rejected(model):
    """Otherwise, the mask of one language would restore entries that are pruned in another."""
    masks = PathwayMasks.dense(model, LANGUAGES)
    prune_by_magnitude(model, masks, ["en"], 0.6)
    with pytest.raises(MasksError, match="en, fr have different masks"):
        prune_by_magnitude(model, masks, ["en", "fr"], 0.7)


def test_pruning_does_not_change_weights(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_by_magnitude(model, PathwayMasks.dense(model, LANGUAGES), ["en"], 0.9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 70])
def test_out_of_range_sparsity_is_rejected(sparsity):
    with pytest.raises(ValueError, match="expected at least 0 and below 1"):
        prune_by_magnitude(AllLayerTypes(), PathwayMasks.dense(AllLayerTypes(), ["en"]), ["en"], sparsity)
