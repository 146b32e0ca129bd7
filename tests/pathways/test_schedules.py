import copy
import itertools

import pytest
import torch
from all_layer_types import LANGUAGES
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.pathways.granularity import num_kept
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import IterativeMagnitudePruning, OneShot, RandomPruning


def run(schedule, model, languages, start=None):
    """Return the final masks and the masks after every pruning, with random weight updates in between."""
    masks = PathwayMasks.dense(model, LANGUAGES)
    history = []
    for update in range(1, schedule.num_updates + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        if schedule.prune_after(update, model, masks, languages, start):
            history.append({name: masks.mask(name, languages[0]) for name in masks.names})
    return masks, history


def test_default_rounds_remove_20_percent_each_until_70_percent():
    schedule = IterativeMagnitudePruning(0.7, 10)
    sparsities = [schedule.sparsity_after(10 * i) for i in range(1, schedule.rounds + 1)]
    assert sparsities == pytest.approx([0.2, 0.36, 0.488, 0.5904, 0.67232, 0.7])
    assert schedule.num_updates == 60


def test_fixed_number_of_rounds_removes_equal_shares():
    schedule = IterativeMagnitudePruning(0.7, 5, rounds=4)
    kept = [1 - schedule.sparsity_after(5 * i) for i in range(1, 5)]
    assert kept == pytest.approx([0.3 ** (i / 4) for i in range(1, 5)])


@settings(max_examples=100, deadline=None)
@given(
    target=st.floats(0.01, 0.99),
    per_round=st.integers(1, 5),
    rounds=st.none() | st.integers(1, 8),
    drop=st.floats(0.05, 0.95),
)
def test_sparsity_is_monotonic_and_ends_at_the_target(target, per_round, rounds, drop):
    schedule = IterativeMagnitudePruning(target, per_round, rounds, drop)
    values = [schedule.sparsity_after(update) for update in range(schedule.num_updates + 3 * per_round)]
    levels = [value for value in values if value is not None]
    assert levels == sorted(levels) and levels[-1] == target and len(levels) == schedule.rounds
    assert all(value is None for update, value in enumerate(values) if update % per_round)


def test_iterative_masks_shrink_to_the_target(model):
    masks, history = run(IterativeMagnitudePruning(0.7, 2), model, ["fr"])
    assert len(history) == 6
    for earlier, later in itertools.pairwise(history):
        assert all(not (later[name] & ~earlier[name]).any() for name in later)
    for name, code in masks.codes.items():
        assert int(masks.mask(name, "fr").sum()) == num_kept(code.numel(), 0.7)
        assert masks.mask(name, "en").all()


def test_imp_continues_from_the_current_weights(model):
    start = copy.deepcopy(model.state_dict())
    run(IterativeMagnitudePruning(0.5, 1, rounds=2), model, ["en"])
    assert not torch.equal(model.linear.weight, start["linear.weight"])


def test_lth_rewinds_to_the_start_after_every_round(model):
    start = copy.deepcopy(model.state_dict())
    run(IterativeMagnitudePruning(0.5, 1, rounds=2, rewinds=True), model, ["en"], start)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_lth_requires_start_weights(model):
    with pytest.raises(ValueError, match="pass the weights of the start"):
        run(IterativeMagnitudePruning(0.5, 1, rewinds=True), model, ["en"])


def test_one_shot_prunes_once():
    schedule = OneShot(0.7, 3)
    assert [schedule.sparsity_after(update) for update in range(1, 7)] == [None, None, 0.7, None, None, None]
    assert (schedule.method, IterativeMagnitudePruning(0.7, 1).method) == ("one-shot", "imp")


def random_masks(model, seed, *groups):
    """Return the masks of the languages after a random mask for each group of them."""
    masks = PathwayMasks.dense(model, LANGUAGES)
    for languages in groups:
        assert RandomPruning(0.7, seed).prune_after(1, model, masks, languages)
    return masks


def test_random_masks_have_the_exact_sparsity_in_every_parameter(model):
    masks = random_masks(model, 1, ["en"], ["fr", "it"])
    assert masks.share_mask(["fr", "it"]) and not masks.share_mask(["en", "fr"])
    for name, code in masks.codes.items():
        for language in LANGUAGES:
            assert int(masks.mask(name, language).sum()) == num_kept(code.numel(), 0.7)


def test_random_masks_depend_on_the_seed_and_the_languages_alone(model):
    expected = random_masks(model, 1, *([code] for code in LANGUAGES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert random_masks(model, 1, ["it"], ["fr"], ["en"]).equals(expected)
    assert not random_masks(model, 2, *([code] for code in LANGUAGES)).equals(expected)


def test_random_masks_of_different_languages_and_parameters_are_independent():
    layers = torch.nn.ModuleList(torch.nn.Linear(200, 100) for _ in range(2))
    masks = random_masks(layers, 1, *([code] for code in LANGUAGES))
    first, second = masks.names
    pairs = [(masks.mask(first, a), masks.mask(first, b)) for a, b in itertools.combinations(LANGUAGES, 2)]
    pairs += [(masks.mask(first, language), masks.mask(second, language)) for language in LANGUAGES]
    for a, b in pairs:
        assert (a & b).double().mean() == pytest.approx(0.3 * 0.3, abs=0.01)


@pytest.mark.parametrize("arguments", [(0.0, 1), (1.0, 1), (0.5, 0), (0.5, 1, -1), (0.5, 1, 0), (0.5, 1, None, 0.0)])
def test_out_of_range_values_are_rejected(arguments):
    with pytest.raises(ValueError, match="expected"):
        IterativeMagnitudePruning(*arguments)
