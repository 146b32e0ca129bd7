import itertools

import pytest
import torch
from all_layer_types import LANGUAGES, LAYER_WEIGHTS, AllLayerTypes
from gpu import default_device
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.pathways.activation import activate
from icefall_pathways.pathways.analysis import mean_overlap
from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.granularity import num_kept
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import (
    AdaptivePruning,
    GradualPruning,
    IterativeMagnitudePruning,
    OneShot,
    cubic_sparsity,
)

pytestmark = pytest.mark.usefixtures("device")


def gradients_of(model, masks, languages=LANGUAGES):
    """Return gradients of a different loss for each language."""
    gradients = LanguageGradients()
    for i, language in enumerate(languages):
        generator = torch.Generator(default_device()).manual_seed(i)
        x = torch.randn(2, 5, 8, generator=generator) * torch.arange(8).roll(3 * i)
        with activate(model, masks, language, gradients.add):
            model(x).square().sum().backward()
    return gradients


def run(schedule, model, masks, gradients=None):
    """Return the masks of each language after every step, with random updates of the weights in between."""
    history = []
    for update in range(1, schedule.num_updates + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        pruned = [schedule.prune_after(update, model, masks, [lang], gradients=gradients) for lang in masks.languages]
        if all(pruned):
            history.append({n: {lang: masks.mask(n, lang) for lang in masks.languages} for n in masks.names})
        else:
            assert not any(pruned)
    return history


def kept(masks, name, language):
    return int(masks.mask(name, language).sum())


@settings(max_examples=100, deadline=None)
@given(
    target=st.floats(0.05, 0.95),
    initial=st.floats(0, 0.95),
    start=st.integers(0, 7),
    every=st.integers(1, 5),
    steps=st.integers(1, 9),
    rest=st.integers(0, 4),
)
def test_ramps_are_monotonic_and_end_at_the_target(target, initial, start, every, steps, rest):
    end = start + steps * every + min(rest, every - 1)
    gradual = GradualPruning(target, every, end, start, initial)
    adaptive = AdaptivePruning(target, every, end, start, initial, ramp=steps // 2 * every)
    for schedule in (gradual, adaptive):
        levels = [(u, s) for u in range(end + 3 * every) if (s := schedule.sparsity_after(u)) is not None]
        assert [u for u, _ in levels] == [start + i * every for i in range(1, steps + 1)]
        values = [s for _, s in levels]
        assert values == sorted(values, reverse=initial > target) and values[-1] == target
    ramped = [adaptive.sparsity_after(start + i * every) for i in range(max(1, steps // 2), steps + 1)]
    assert set(ramped) == {target}


def test_ramp_is_cubic():
    assert [cubic_sparsity(0, 0.8, t) for t in (0, 0.5, 1)] == pytest.approx([0, 0.8 * (1 - 0.5**3), 0.8])
    assert cubic_sparsity(0.5, 0.9, 0.5) == pytest.approx(0.9 - 0.4 / 8)


@pytest.mark.parametrize("exchange", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "prune_by, regrow", [("magnitude", "magnitude"), ("magnitude", "gradient"), ("sensitivity",) * 2]
)
def test_every_step_meets_the_sparsity_exactly(model, prune_by, regrow, exchange):
    masks = PathwayMasks.dense(model, LANGUAGES)
    gradients = gradients_of(model, masks)
    schedule = AdaptivePruning(0.7, 2, 12, ramp=6, prune_by=prune_by, regrow=regrow, exchange=exchange)
    history = run(schedule, model, masks, gradients)
    assert len(history) == 6
    for step, step_masks in enumerate(history, 1):
        sparsity = cubic_sparsity(0, 0.7, step / 3)
        flat = [mask for by_language in step_masks.values() for mask in by_language.values()]
        assert all(int(mask.sum()) == num_kept(mask.numel(), sparsity) for mask in flat)


def test_count_is_exact_for_equal_scores(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    masks = PathwayMasks.dense(model, LANGUAGES)
    AdaptivePruning(0.7, 1, 2, prune_by="magnitude", regrow="magnitude").prune_after(1, model, masks, ["en"])
    assert all(kept(masks, n, "en") == num_kept(c.numel(), 0.7) for n, c in masks.codes.items())


def test_gradual_pruning_never_regrows(model):
    history = run(GradualPruning(0.7, 1, 6), model, PathwayMasks.dense(model, LANGUAGES))
    for earlier, later in itertools.pairwise(history):
        assert all(not (later[n][lang] & ~earlier[n][lang]).any() for n in later for lang in LANGUAGES)


@pytest.mark.parametrize(
    "schedule",
    [
        OneShot(0.7, 1, "sensitivity"),
        IterativeMagnitudePruning(0.7, 1, 2, prune_by="sensitivity"),
        GradualPruning(0.7, 1, 2, prune_by="sensitivity"),
    ],
)
def test_search_by_sensitivity_yields_different_masks(model, schedule):
    masks = PathwayMasks.dense(model, LANGUAGES)
    history = run(schedule, model, masks, gradients_of(model, masks))
    assert all(kept(masks, n, lang) == num_kept(c.numel(), 0.7) for n, c in masks.codes.items() for lang in LANGUAGES)
    assert mean_overlap(masks) < 0.9
    for earlier, later in itertools.pairwise(history):
        assert all(not (later[n][lang] & ~earlier[n][lang]).any() for n in later for lang in LANGUAGES)


def test_entries_trained_by_other_languages_regrow(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    outside = torch.zeros(model.linear.weight.shape, dtype=torch.bool)
    outside[:2] = True
    for name in masks.names:
        masks.set_mask(name, "en", torch.rand(masks.codes[name].shape) < 0.3)
    masks.set_mask("linear.weight", "en", ~outside)
    with torch.no_grad():
        model.linear.weight[outside] = 9.0
    AdaptivePruning(0.7, 1, 4, prune_by="magnitude", regrow="magnitude").prune_after(1, model, masks, ["en"])
    assert masks.mask("linear.weight", "en")[outside].all()
    assert masks.mask("linear.weight", "fr").all()


def test_exchange_is_limited_to_its_share(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    schedule = AdaptivePruning(0.5, 1, 10, ramp=1, prune_by="magnitude", regrow="sensitivity", exchange=0.2)
    history = run(schedule, model, masks, gradients_of(model, masks))
    for step, (earlier, later) in enumerate(itertools.pairwise(history), 2):
        for before, after in ((earlier[n]["en"], later[n]["en"]) for n in later):
            num_removed = int((before & ~after).sum())
            assert num_removed <= schedule.exchange_at(step) * num_kept(before.numel(), 0.5) + 1
    shares = [schedule.exchange_at(step) for step in range(1, 11)]
    assert shares[0] == 0.2 and shares == sorted(shares, reverse=True) and shares[-1] < 0.02


def test_magnitude_makes_masks_equal_and_sensitivity_different(model):
    overlaps = {}
    for criterion in ("magnitude", "sensitivity"):
        masks = PathwayMasks.dense(model, LANGUAGES)
        gradients = gradients_of(model, masks)
        run(AdaptivePruning(0.7, 1, 4, ramp=2, prune_by=criterion, regrow=criterion), model, masks, gradients)
        overlaps[criterion] = mean_overlap(masks)
    assert overlaps["magnitude"] == 1 > 0.9 > overlaps["sensitivity"]


def test_sensitivity_selects_the_largest_products_of_weight_and_gradient(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    gradients = gradients_of(model, masks)
    AdaptivePruning(0.7, 1, 1, ramp=1).prune_after(1, model, masks, ["fr"], gradients=gradients)
    squares = gradients.mean_square(["fr"])
    for name in LAYER_WEIGHTS:
        scores = (dict(model.named_parameters())[name].detach().abs() * squares[name].sqrt()).flatten()
        mask = masks.mask(name, "fr").flatten()
        assert scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize("name", LAYER_WEIGHTS)
def test_observer_receives_the_gradient_of_the_masked_weights(model, masks, x, name):
    """Compare with a dense model that holds the products, including entries outside the mask."""
    observed = {}
    with activate(model, masks, "fr", lambda language, name, gradient: observed.update({(language, name): gradient})):
        model(x).square().sum().backward()
    product = AllLayerTypes()
    product.load_state_dict(
        {n: v * masks.mask(n, "fr") if n in masks.codes else v for n, v in model.state_dict().items()}
    )
    product(x).square().sum().backward()
    expected = dict(product.named_parameters())[name].grad
    torch.testing.assert_close(observed["fr", name], expected)
    assert expected[~masks.mask(name, "fr")].abs().sum() > 0


def test_mean_square_is_updated_by_batches_of_its_language_only():
    gradients = LanguageGradients(decay=0.5)
    for value in (2.0, 4.0, float("inf")):
        gradients.add("en", "w", torch.tensor([value]))
    gradients.add("fr", "w", torch.tensor([1.0]))
    assert gradients.mean_square(["en"])["w"].item() == ((0 + 4) / 2 + 16) / 2 / 2
    assert gradients.mean_square(["fr"])["w"].item() == 0.5
    assert gradients.mean_square(["en", "fr"])["w"].item() == 5
    assert gradients.mean_square(["it"]) == {}


def test_reduce_sums_over_ranks_and_resets_all_but_the_main_rank():
    gradients = LanguageGradients(decay=0.5, all_reduce_sum=lambda tensor: tensor.mul_(2))
    gradients.add("en", "w", torch.tensor([2.0]))
    assert gradients.mean_square(["en"])["w"].item() == 4 == gradients.mean_square(["en"])["w"].item()
    gradients.reduce(is_main=False)
    assert gradients.state_dict()["en"]["w"].item() == 0


def test_magnitude_is_used_before_the_first_batch(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    AdaptivePruning(0.7, 1, 1, ramp=1).prune_after(1, model, masks, ["en"], gradients=LanguageGradients())
    weight = model.linear.weight.detach().abs()
    mask = masks.mask("linear.weight", "en")
    assert weight[mask].min() >= weight[~mask].max()


def test_missing_gradients_are_rejected(model):
    with pytest.raises(ValueError, match="ranks entries by gradients: pass `gradients`"):
        AdaptivePruning(0.7, 1, 1, ramp=1).prune_after(1, model, PathwayMasks.dense(model, LANGUAGES), ["en"])


@pytest.mark.parametrize(
    "values", [{"every": 0}, {"end": 4}, {"start": -1}, {"ramp": 20}, {"exchange": 1.5}, {"regrow": "luck"}]
)
def test_out_of_range_values_are_rejected(values):
    with pytest.raises(ValueError, match="expected"):
        AdaptivePruning(**{"target_sparsity": 0.7, "every": 5, "end": 10} | values)
