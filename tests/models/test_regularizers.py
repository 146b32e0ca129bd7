"""The regularizers equal icefall's."""

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

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def numbers(device):
    return load_numbers("regularizers")


def _input_gradient(function, x, grad):
    """Return the gradient of x, given the gradient of the output, and check that the output is x."""
    x = x.clone().requires_grad_()
    y = function(x)
    assert torch.equal(y, x)
    y.backward(grad)
    return x.grad


def _close(actual, expected, rtol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


def _balancer(case):
    names = ("min_positive", "max_positive", "min_abs", "max_abs")
    return Balancer(*(float(case[name]) for name in names), probability=1.0, grad_scale=float(case["grad_scale"]))


def test_balancers_equal_icefall(numbers):
    for case in numbers["balancer"]:
        actual = _input_gradient(_balancer(case), case["x"], case["gy"])
        assert not torch.equal(actual, case["gy"])
        _close(actual, case["gx"])
    case = numbers["balancer_channel_dim1"]
    actual = _input_gradient(_balancer(case), case["x"].transpose(1, 2), case["gy"].transpose(1, 2))
    _close(actual.transpose(1, 2), case["gx"])


def test_whiteners_equal_icefall(numbers):
    active = []
    for case in numbers["whiten"]:
        module = Whiten(int(case["num_groups"]), float(case["limit"]), float(case["grad_scale"]))
        module.probability = 1.0
        actual = _input_gradient(module, case["x"], case["gy"])
        _close(actual, case["gx"])
        active.append(not torch.equal(actual, case["gy"]))
        assert module.probability == 1.0 and bool(module.was_active) == active[-1]
        module.update_probability(active[-1])
        assert module.probability == (0.25 if active[-1] else 0.025)
    assert sorted(active) == [False, True, True]


def test_limits_equal_icefall(numbers):
    case = numbers["limit_param_value"]
    actual = _input_gradient(lambda x: limit_gradient(x, float(case["min"]), float(case["max"])), case["p"], case["gy"])
    _close(actual, case["gx"])
    case = numbers["penalize_abs_values_gt"]
    actual = _input_gradient(
        lambda x: penalize_large_scores(x, float(case["limit"]), float(case["penalty"])), case["x"], case["gy"]
    )
    _close(actual, case["gx"])


def test_schedules_equal_icefall(numbers):
    for case in numbers["schedules"].values():
        schedule = Schedule(*(tuple(float(value) for value in pair) for pair in case["pairs"]))
        for position, value in zip(case["at"].tolist(), case["value"].tolist(), strict=True):
            assert schedule(position) == pytest.approx(value, rel=1e-6)


def test_positions_of_a_schedule_must_increase():
    with pytest.raises(ValueError, match="increasing"):
        Schedule((0, 1.0), (0, 2.0))


class ScheduledRate(Scheduled):
    def forward(self):
        return self.rate(Schedule((0, 0.4), (100, 0.2)))


def test_rates_depend_on_the_position_and_are_zero_in_eval_mode():
    model = nn.ModuleList([ScheduledRate()])
    assert model[0]() == 0.4
    set_position(model, 50.0)
    assert model[0]() == pytest.approx(0.3)
    assert model.eval()[0]() == 0.0


@pytest.mark.parametrize("module", [Balancer(0.4, 0.6, 1.0, 2.0, probability=1.0), Whiten(1, 1.5)])
def test_gradients_are_unmodified_in_eval_mode(module):
    x, grad = torch.randn(50, 4) * 9 + 3, torch.randn(50, 4)
    assert torch.equal(_input_gradient(module.eval(), x, grad), grad)


def test_balancers_are_active_with_the_scheduled_probability():
    balancer = Balancer(0.4, 0.6, 1.0, 2.0)
    x, grad = torch.randn(50, 4) * 9 + 3, torch.ones(50, 4)
    frequency = sum(not torch.equal(_input_gradient(balancer, x, grad), grad) for _ in range(400)) / 400
    assert 0.42 < frequency < 0.58
    balancer.position = 8000
    frequency = sum(not torch.equal(_input_gradient(balancer, x, grad), grad) for _ in range(400)) / 400
    assert 0.07 < frequency < 0.19


def test_whitener_probability_drops_below_the_limit_and_is_saved():
    model = nn.Sequential(Whiten(1, 1e9), Whiten(2, 1.0))
    x = torch.randn(30, 4).requires_grad_()
    for _ in range(40):
        model(x).sum().backward()
        for whitener, was_active in pending_whiteners(model).items():
            whitener.update_probability(bool(was_active))
    assert not pending_whiteners(model)
    assert regularizer_state(model) == {"0": 0.025, "1": 0.25}
    other = nn.Sequential(Whiten(1, 1e9), Whiten(2, 1.0))
    load_regularizer_state(other, regularizer_state(model))
    assert other[0].probability == 0.025


def test_drop_sequences_zeroes_whole_sequences_without_scaling():
    dropped = drop_sequences(torch.ones(2000, 3, 2), 0.3).cpu()
    assert set(dropped.sum((1, 2)).tolist()) == {0.0, 6.0}
    assert dropped.mean() == pytest.approx(0.7, abs=0.04)
    assert drop_sequences(dropped, 0.0) is dropped


def test_drop_channels_uses_one_scaled_mask_for_all_frames():
    dropped = drop_channels(torch.ones(20, 5, 100), 0.25)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(dropped.amin(1), dropped.amax(1))


def test_scale_gradient_multiplies_the_gradient():
    assert torch.equal(
        _input_gradient(lambda x: scale_gradient(x, 0.2), torch.ones(3), torch.ones(3)), torch.full((3,), 0.2)
    )


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_gradients_of_constant_channels_are_finite(value):
    """The feature mask may zero a channel in the whole batch."""
    grad = torch.ones(10, 2)
    actual = _input_gradient(Balancer(0.4, 0.6, 1.0, 2.0, probability=1.0), torch.full((10, 2), value), grad)
    assert (actual - grad).abs().max() <= 0.05
    assert actual.isfinite().all()
    assert _input_gradient(Whiten(1, 1.0), torch.full((10, 2), value), grad).isfinite().all()


def test_balancer_gradient_equals_the_gradient_of_its_loss():
    """Autograd computes the derivative of the auxiliary loss."""
    x = (
        torch.randn(200, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 9.0]) + torch.tensor([0.1, 0.0, -4.0])
    ).requires_grad_()
    mean, rms = x.mean(0), x.square().mean(0).sqrt()
    ratio = mean / (rms**2 - mean**2).sqrt()
    limit = 0.8139535143 * math.atanh(0.2)
    max_rms = math.sqrt(math.pi / 2) * 2.0
    loss = (ratio - ratio.clamp(-limit, limit)).abs() + (rms.clamp(max_rms / 2, max_rms) / rms).log().abs()
    loss.sum().backward()
    expected = 1.0 + 0.04 * x.grad / x.grad.square().mean(0).sqrt().clamp(min=1e-20)
    balancer = Balancer(0.4, 0.6, 1.0, 2.0, probability=1.0)
    _close(_input_gradient(balancer, x.detach().float(), torch.ones(200, 3)), expected.float(), rtol=1e-4)
