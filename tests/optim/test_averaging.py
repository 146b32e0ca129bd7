import pytest
import torch
from torch import nn

from icefall_pathways.optim.averaging import ModelAverage, average_range

pytestmark = pytest.mark.usefixtures("device")


def random_walk(model, average, updates):
    """Change the weights in every update; return the weights at the end of every period."""
    samples = []
    for update in updates:
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(model, update)
        if update % 5 == 0:
            samples.append(model.weight.detach().double())
    return samples


def test_average_is_the_mean_of_the_samples():
    model = nn.Linear(3, 2)
    average = ModelAverage(model, 5)
    samples = random_walk(model, average, range(1, 41))
    torch.testing.assert_close(average.state_dict()["weight"], torch.stack(samples).mean(0))


def test_average_over_a_range_follows_from_the_averages_at_its_ends():
    model = nn.Linear(3, 2)
    average = ModelAverage(model, 5)
    random_walk(model, average, range(1, 21))
    start = {name: value.clone() for name, value in average.state_dict().items()}
    samples = random_walk(model, average, range(21, 61))
    over_range = average_range(start, average.state_dict(), 20, 60)
    torch.testing.assert_close(over_range["weight"], torch.stack(samples).mean(0))


def test_average_of_a_float64_model_does_not_share_memory():
    model = nn.Linear(3, 2).double()
    average = ModelAverage(model, 1)
    before = model.weight.detach().clone()
    average.state_dict()["weight"].zero_()
    assert torch.equal(model.weight, before)


def test_average_of_constant_weights_is_exact():
    model = nn.Linear(3, 2)
    average = ModelAverage(model, 1)
    for update in range(1, 50):
        average.update(model, update)
    assert torch.equal(average.state_dict()["weight"], model.weight.double())


def test_empty_range_is_rejected():
    with pytest.raises(ValueError, match="the end must come after the start"):
        average_range({}, {}, 10, 10)
