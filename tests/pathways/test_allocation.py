import pytest
import torch
from all_layer_types import AllLayerTypes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from magnitude_pruning import prune_by_magnitude

from icefall_pathways.pathways.allocation import budget_groups
from icefall_pathways.pathways.granularity import num_kept
from icefall_pathways.pathways.layer_sparsity import parse_layer_sparsity
from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks

SIZES = {"a.0.weight": 400, "a.1.weight": 1000, "a.10.weight": 600, "b.weight": 2000}


def header(**fields):
    return MasksHeader(("en",), target_sparsity=0.7, **fields)


def pruned(model, sparsity, **fields):
    masks = PathwayMasks.dense(model, ["en"])
    masks.header = MasksHeader(("en",), target_sparsity=sparsity, **fields)
    prune_by_magnitude(model, masks, ["en"], sparsity)
    return masks


def test_layer_wise_allocation_gives_every_tensor_the_same_sparsity():
    assert budget_groups(header(), SIZES, 0.6) == [([name], 0.6) for name in SIZES]


def test_global_allocation_keeps_the_exact_top_k_of_all_tensors():
    model = AllLayerTypes()
    masks = pruned(model, 0.4, allocation="global")
    magnitudes = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in masks.names])
    mask = torch.cat([masks.mask(name, "en").flatten() for name in masks.names])
    assert int(mask.sum()) == num_kept(len(mask), 0.4)
    assert magnitudes[mask].min() >= magnitudes[~mask].max()
    assert len({round(masks.sparsity("en", name), 2) for name in masks.names}) > 3


def test_global_allocation_keeps_an_entry_of_every_tensor():
    model = AllLayerTypes()
    with torch.no_grad():
        model.linear.weight.mul_(1e-6)
    masks = pruned(model, 0.9, allocation="global")
    kept = masks.mask("linear.weight", "en")
    best = model.linear.weight.detach().abs().argmax()
    assert kept.sum() == 1 and kept.flatten()[best]
    total = sum(code.numel() for code in masks.codes.values())
    assert sum(int(masks.mask(name, "en").sum()) for name in masks.names) == num_kept(total, 0.9)


@pytest.mark.parametrize("granularity", ["row", "column", "block:2x3"])
def test_global_allocation_of_groups_deviates_by_at_most_half_a_group(granularity):
    masks = pruned(AllLayerTypes(), 0.6, allocation="global", granularity=granularity)
    masks.check_granularity()
    total = sum(code.numel() for code in masks.codes.values())
    kept = sum(int(masks.mask(name, "en").sum()) for name in masks.names)
    largest = {"row": 72, "column": 32 * 4, "block:2x3": 6}[granularity]
    assert abs(kept - num_kept(total, 0.6)) <= largest / 2


@pytest.mark.parametrize("allocation", ["layer-wise", "global"])
def test_layer_sparsities_are_met_and_other_layers_compensate(allocation):
    masks = pruned(AllLayerTypes(), 0.7, allocation=allocation, layer_sparsity="linear=0.5 lstm.weight_ih*=0.6")
    for name in masks.names:
        own = 0.5 if name == "linear.weight" else 0.6 if name.startswith("lstm.weight_ih") else None
        if own is not None:
            assert int(masks.mask(name, "en").sum()) == num_kept(masks.codes[name].numel(), own)
    assert masks.sparsity("en") == pytest.approx(0.7, abs=0.01)


def test_patterns_match_modules_and_parameters():
    assert budget_groups(header(layer_sparsity="a.1=0.5"), SIZES, 0.7)[1] == (["a.1.weight"], 0.5)
    assert budget_groups(header(layer_sparsity="a.1=0.5"), SIZES, 0.7)[2][1] != 0.5  # a.10 is another layer
    own = {names[0]: share for names, share in budget_groups(header(layer_sparsity="a=0.6 a.0=0.2"), SIZES, 0.7)}
    assert (own["a.0.weight"], own["a.1.weight"], own["a.10.weight"]) == (
        0.2,
        0.6,
        0.6,
    )  # the last match counts


@settings(max_examples=200, deadline=None)
@given(own=st.tuples(st.floats(0, 0.95), st.floats(0, 0.95)), target=st.floats(0.05, 0.95), now=st.floats(0, 0.999))
def test_overall_sparsity_is_met_below_and_above_the_target(own, target, now):
    given_header = MasksHeader(("en",), target_sparsity=target, layer_sparsity=f"a.0={own[0]!r} a.1={own[1]!r}")
    assume(0 <= (target * 4000 - own[0] * 400 - own[1] * 1000) / 2600 < 1)
    shares = {names[0]: share for names, share in budget_groups(given_header, SIZES, now)}
    assert all(0 <= share < 1 for share in shares.values())
    assert sum(share * SIZES[name] for name, share in shares.items()) == pytest.approx(now * 4000, abs=1e-6)
    at_target = {names[0]: share for names, share in budget_groups(given_header, SIZES, target)}
    assert at_target["a.0.weight"] == own[0] and at_target["a.1.weight"] == own[1]


def test_impossible_layer_sparsities_are_rejected():
    with pytest.raises(ValueError, match=r"c=0.5 matches no prunable parameter: these are a.0.weight"):
        budget_groups(header(layer_sparsity="c=0.5"), SIZES, 0.7)
    with pytest.raises(ValueError, match=r"fixes 1 of 4 parameters; .* 0.7 would have to prune 2800 of"):
        budget_groups(header(layer_sparsity="b=0"), SIZES, 0.7)
    with pytest.raises(ValueError, match="is not a layer sparsity"):
        parse_layer_sparsity("a=1.5")
    with pytest.raises(ValueError, match="is not a layer sparsity"):
        parse_layer_sparsity("a")
    with pytest.raises(ValueError, match="cannot be combined with global"):
        header(granularity="2:4", allocation="global")
    with pytest.raises(ValueError, match="allocation 'best': expected one of layer-wise, global"):
        header(allocation="best")
