"""The hand-tiled CPU kernels equal plain torch expressions."""

import pytest
import torch
import torch.nn.functional as F

from icefall_pathways.models import cpu_kernels
from icefall_pathways.models.cpu_kernels import depthwise_conv2d
from icefall_pathways.models.regularizers import balance
from icefall_pathways.models.zipformer import functions


def _random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def _assert_same_gradients(actual, expected, inputs):
    grad = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, atol=1e-7, rtol=0)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, kernel, padding",
    [
        ((2, 150, 9, 4), (7, 7), (0, 3)),
        ((2, 3, 16, 4), (1, 5), (0, 2)),
        ((2, 1, 30, 4), (1, 5), (0, 0)),
        ((120, 24, 1, 4), (15, 1), (0, 0)),  # more short images than one call processes
    ],
)
def test_depthwise_convolution_equals_torch(shape, kernel, padding):
    torch.manual_seed(1)
    x, weight, bias = _random(*shape), _random(4, 1, *kernel), _random(4)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=4).permute(0, 2, 3, 1)
    _assert_same_gradients(depthwise_conv2d(x, weight, bias, padding), expected, (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8])
def test_depthwise_convolution_is_computed_in_float32_under_autocast(rows, dtype):
    x, weight, bias = torch.randn(2, rows, 20, 4), torch.randn(4, 1, 1, 5), torch.randn(4)
    inputs = [tensor.requires_grad_() for tensor in (x.to(dtype), weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = depthwise_conv2d(*inputs, padding=(0, 2))
    expected = depthwise_conv2d(inputs[0].float(), *inputs[1:], padding=(0, 2)).bfloat16()
    assert torch.equal(out, expected)
    gradients = [torch.autograd.grad(result.sum(), inputs) for result in (out, expected)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("limits", [None, (-0.1, 0.1, 0.3, 0.4)])
def test_tiled_block_equals_plain_layers(monkeypatch, limits):
    """With and without gradients; the number of rows is not a multiple of the tile's."""
    monkeypatch.setattr(cpu_kernels, "_TILE", 1000)
    torch.manual_seed(1)
    inputs = _random(3, 40, 5), _random(24, 5), _random(24), _random(7, 24), _random(7)
    x, weight1, bias1, weight2, bias2 = inputs
    hidden = 3.0 * F.linear(x, weight1, bias1)
    hidden = hidden if limits is None else balance(hidden, limits, 0.04)
    expected = F.linear(F.softplus(hidden - 4) - 0.08 * hidden - 0.035, weight2, bias2)
    actual = functions.swoosh_l_block(x, 3.0 * weight1, 3.0 * bias1, weight2, bias2, limits, 0.04)
    with torch.no_grad():
        without_gradients = functions.swoosh_l_block(x, 3.0 * weight1, 3.0 * bias1, weight2, bias2, limits, 0.04)
    torch.testing.assert_close(without_gradients, actual, atol=1e-12, rtol=0)
    _assert_same_gradients(actual, expected, inputs)


@pytest.mark.parametrize("swoosh, shift, offset", [("swoosh_l", 4, 0.035), ("swoosh_r", 1, 0.313261687)])
def test_tiled_swoosh_equals_its_definition(swoosh, shift, offset):
    """With and without gradients, and for values at which exp overflows."""
    x = torch.cat([_random(50), 500 * _random(50)]).detach().requires_grad_()
    expected = F.softplus(x - shift) - 0.08 * x - offset
    with torch.no_grad():
        torch.testing.assert_close(getattr(functions, swoosh)(x), expected, atol=1e-7, rtol=0)
    _assert_same_gradients(getattr(functions, swoosh)(x), expected, (x,))
