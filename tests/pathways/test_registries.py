"""A criterion is one function and one line in CRITERIA, a method one class and one line in a table of methods."""

from typing import get_args

import pytest
import torch
from all_layer_types import LANGUAGES

from icefall_pathways.pathways.criteria import CRITERIA, Criterion, PruneCriterion, RegrowCriterion
from icefall_pathways.pathways.granularity import num_kept
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.pathways.schedules import (
    JOINT_METHODS,
    SEARCH_METHODS,
    AdaptivePruning,
    GradualPruning,
    IterativeMagnitudePruning,
    JointSettings,
    OneShot,
    SearchSettings,
)
from icefall_pathways.pathways.schedules.registry import JointMethod, SearchMethod
from icefall_pathways.training.config import JointPruningConfig, PruningConfig
from icefall_pathways.training.pruning_plan import joint_plan, search_schedule

SEARCH = SearchSettings(0.7, updates_per_round=2, rounds=None, drop=0.2, prune_by="magnitude", seed=1)
JOINT = JointSettings(0.7, 2, 12, 0, 0.0, None, prune_by="sensitivity", regrow="gradient", exchange=0.5)


def smallest_magnitude(statistics):
    return -statistics.magnitude


@pytest.fixture
def toy_criterion(monkeypatch):
    monkeypatch.setitem(CRITERIA, "smallest", Criterion(smallest_magnitude, needs_gradients=False))
    return "smallest"


@pytest.mark.parametrize("schedule", [OneShot, IterativeMagnitudePruning])
def test_a_registered_criterion_prunes(model, toy_criterion, schedule):
    masks = PathwayMasks.dense(model, LANGUAGES)
    pruning = schedule(0.7, 1, prune_by=toy_criterion)
    assert not pruning.needs_gradients
    for update in range(1, pruning.num_updates + 1):
        pruning.prune_after(update, model, masks, LANGUAGES)
    for name in masks.names:
        magnitudes, mask = model.get_parameter(name).detach().abs(), masks.mask(name, "fr")
        assert int(mask.sum()) == num_kept(mask.numel(), 0.7)
        assert magnitudes[mask].max() <= magnitudes[~mask].min()


def test_a_registered_criterion_regrows(model, toy_criterion):
    masks = PathwayMasks.dense(model, LANGUAGES)
    masks.set_mask("linear.weight", LANGUAGES, torch.arange(42).view(7, 6) < 13)
    schedule = AdaptivePruning(0.7, 1, 2, initial=0.7, prune_by="magnitude", regrow=toy_criterion)
    schedule.prune_after(1, model, masks, LANGUAGES)
    magnitudes, mask = model.linear.weight.detach().abs(), masks.mask("linear.weight", "en")
    assert int(mask.sum()) == num_kept(42, 0.7) and magnitudes[mask].max() <= magnitudes[~mask].min()


@pytest.mark.parametrize("create", [OneShot, IterativeMagnitudePruning])
def test_an_unregistered_criterion_is_rejected(create):
    with pytest.raises(ValueError, match=f"unknown criterion 'best': expected one of {', '.join(CRITERIA)}"):
        create(0.7, 1, prune_by="best")


def test_options_offer_the_registered_criteria_and_methods():
    assert set(get_args(PruneCriterion)) == {name for name, entry in CRITERIA.items() if not entry.only_regrows}
    assert "gradient" not in get_args(PruneCriterion)
    assert get_args(RegrowCriterion) == tuple(CRITERIA)
    assert get_args(SearchMethod) == tuple(SEARCH_METHODS)
    assert get_args(JointMethod) == ("none", *JOINT_METHODS)


@pytest.mark.parametrize("name", SEARCH_METHODS)
def test_search_methods_carry_their_name(name):
    schedule = SEARCH_METHODS[name](SEARCH)
    assert schedule.method == name and schedule.sparsity_after(schedule.num_updates) == 0.7
    assert schedule.rewinds == (name == "lth")


@pytest.mark.parametrize("name", JOINT_METHODS)
def test_joint_methods_carry_their_name_and_end_at_the_target(name):
    schedule = JOINT_METHODS[name](JOINT)
    assert schedule.method == name and schedule.sparsity_after(12) == 0.7 and schedule.needs_gradients
    if isinstance(schedule, AdaptivePruning):
        assert (schedule.ramp_steps, schedule.regrow, schedule.exchange) == (4, "gradient", 0.5)


def test_a_registered_method_is_planned(model, monkeypatch):
    monkeypatch.setitem(SEARCH_METHODS, "toy", lambda settings: OneShot(settings.target_sparsity, 7))
    monkeypatch.setitem(
        JOINT_METHODS, "toy", lambda settings: GradualPruning(settings.target_sparsity, 3, settings.end)
    )
    assert search_schedule(PruningConfig(prune_method="toy", sparsity=0.6), seed=1).sparsity_after(7) == 0.6
    plan = joint_plan(JointPruningConfig(prune_method="toy"), PathwayMasks.dense(model, LANGUAGES), num_updates=12)
    assert plan is not None and plan.schedule.num_updates == 9
