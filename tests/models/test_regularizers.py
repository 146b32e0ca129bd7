"""Regularisers against the public implementation's numbers."""

import math

import pytest
import torch
from public_numbers import load_numbers
from torch import nn

from icefall_pathways.models.regularizers import (
    Balancer,
    Schedule,
    Scheduled,
    Whiten,
    drop_channels,
    drop_sequences,
    limit_gradient,
    load_regularizer_state,
    penalize_large_scores,
    pending_whiteners,
    regularizer_state,
    scale_gradient,
    set_position,
)


@pytest.fixture(scope="module")
def numbers():
    return load_numbers("regularizers")


def _edited(function, x, grad):
    """The gradient that leaves `function` at x, which must not change x."""
    x = x.clone().requires_grad_()
    y = function(x)
    assert torch.equal(y, x)
    y.backward(grad)
    return x.grad


def _close(found, expected, rtol=1e-5):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


def _balancer(case):
    names = ("min_positive", "max_positive", "min_abs", "max_abs")
    return Balancer(*(float(case[name]) for name in names), probability=1.0, grad_scale=float(case["grad_scale"]))


def test_balancers(numbers):
    for case in numbers["balancer"]:
        found = _edited(_balancer(case), case["x"], case["gy"])
        assert not torch.equal(found, case["gy"])
        _close(found, case["gx"])
    case = numbers["balancer_channel_dim1"]
    found = _edited(_balancer(case), case["x"].transpose(1, 2), case["gy"].transpose(1, 2))
    _close(found.transpose(1, 2), case["gx"])


def test_whiteners(numbers):
    acted = []
    for case in numbers["whiten"]:
        module = Whiten(int(case["num_groups"]), float(case["limit"]), float(case["grad_scale"]))
        module.probability = 1.0
        found = _edited(module, case["x"], case["gy"])
        _close(found, case["gx"])
        acted.append(not torch.equal(found, case["gy"]))
        assert module.probability == 1.0 and bool(module.was_active) == acted[-1]
        module.update_probability(acted[-1])
        assert module.probability == (0.25 if acted[-1] else 0.025)
    assert sorted(acted) == [False, True, True]


def test_limits(numbers):
    case = numbers["limit_param_value"]
    found = _edited(lambda x: limit_gradient(x, float(case["min"]), float(case["max"])), case["p"], case["gy"])
    _close(found, case["gx"])
    case = numbers["penalize_abs_values_gt"]
    found = _edited(
        lambda x: penalize_large_scores(x, float(case["limit"]), float(case["penalty"])), case["x"], case["gy"]
    )
    _close(found, case["gx"])


def test_schedules(numbers):
    for case in numbers["schedules"].values():
        schedule = Schedule(*(tuple(float(value) for value in pair) for pair in case["pairs"]))
        for position, value in zip(case["at"].tolist(), case["value"].tolist(), strict=True):
            assert schedule(position) == pytest.approx(value, rel=1e-6)


def test_points_of_a_schedule_must_rise():
    with pytest.raises(ValueError, match="rising"):
        Schedule((0, 1.0), (0, 2.0))


class Rated(Scheduled):
    def forward(self):
        return self.rate(Schedule((0, 0.4), (100, 0.2)))


def test_rates_follow_the_position_and_are_zero_outside_training():
    model = nn.ModuleList([Rated()])
    assert model[0]() == 0.4
    set_position(model, 50.0)
    assert model[0]() == pytest.approx(0.3)
    assert model.eval()[0]() == 0.0


@pytest.mark.parametrize("module", [Balancer(0.4, 0.6, 1.0, 2.0, probability=1.0), Whiten(1, 1.5)])
def test_nothing_acts_in_eval_mode(module):
    x, grad = torch.randn(50, 4) * 9 + 3, torch.randn(50, 4)
    assert torch.equal(_edited(module.eval(), x, grad), grad)


def test_balancers_act_as_often_as_they_should():
    balancer = Balancer(0.4, 0.6, 1.0, 2.0)
    x, grad = torch.randn(50, 4) * 9 + 3, torch.ones(50, 4)
    acted = sum(not torch.equal(_edited(balancer, x, grad), grad) for _ in range(400)) / 400
    assert 0.42 < acted < 0.58
    balancer.position = 8000
    acted = sum(not torch.equal(_edited(balancer, x, grad), grad) for _ in range(400)) / 400
    assert 0.07 < acted < 0.19


def test_a_whitener_that_is_not_needed_acts_seldom_and_its_state_survives():
    model = nn.Sequential(Whiten(1, 1e9), Whiten(2, 1.0))
    x = torch.randn(30, 4).requires_grad_()
    for _ in range(40):
        model(x).sum().backward()
        for whitener, acted in pending_whiteners(model).items():
            whitener.update_probability(bool(acted))
    assert not pending_whiteners(model)
    assert regularizer_state(model) == {"0": 0.025, "1": 0.25}
    other = nn.Sequential(Whiten(1, 1e9), Whiten(2, 1.0))
    load_regularizer_state(other, regularizer_state(model))
    assert other[0].probability == 0.025


def test_dropped_sequences_are_dropped_whole_and_others_not_scaled():
    dropped = drop_sequences(torch.ones(2000, 3, 2), 0.3)
    assert set(dropped.sum((1, 2)).tolist()) == {0.0, 6.0}
    assert dropped.mean() == pytest.approx(0.7, abs=0.04)
    assert drop_sequences(dropped, 0.0) is dropped


def test_dropped_channels_are_dropped_in_all_frames_and_others_scaled():
    dropped = drop_channels(torch.ones(20, 5, 100), 0.25)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(dropped.amin(1), dropped.amax(1))


def test_scaled_gradients():
    assert torch.equal(_edited(lambda x: scale_gradient(x, 0.2), torch.ones(3), torch.ones(3)), torch.full((3,), 0.2))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_channels_that_are_the_same_everywhere_are_no_trouble(value):
    """A whole batch may lose a channel to the feature mask."""
    grad = torch.ones(10, 2)
    edited = _edited(Balancer(0.4, 0.6, 1.0, 2.0, probability=1.0), torch.full((10, 2), value), grad)
    assert (edited - grad).abs().max() <= 0.05
    assert edited.isfinite().all()
    assert _edited(Whiten(1, 1.0), torch.full((10, 2), value), grad).isfinite().all()


def test_a_balancer_knows_its_loss():
    """Its edit is that of a loss derived by autograd."""
    x = (
        torch.randn(200, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 9.0]) + torch.tensor([0.1, 0.0, -4.0])
    ).requires_grad_()
    mean, size = x.mean(0), x.square().mean(0).sqrt()
    ratio = mean / (size**2 - mean**2).sqrt()
    limit = 0.8139535143 * math.atanh(0.2)
    large = math.sqrt(math.pi / 2) * 2.0
    loss = (ratio - ratio.clamp(-limit, limit)).abs() + (size.clamp(large / 2, large) / size).log().abs()
    loss.sum().backward()
    expected = 1.0 + 0.04 * x.grad / x.grad.square().mean(0).sqrt().clamp(min=1e-20)
    balancer = Balancer(0.4, 0.6, 1.0, 2.0, probability=1.0)
    _close(_edited(balancer, x.detach().float(), torch.ones(200, 3)), expected.float(), rtol=1e-4)
