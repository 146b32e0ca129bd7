"""The built-in losses on a GPU equal those on the CPU, for all types of inputs, and do not synchronize."""

import pytest
import rnnt_shapes
import torch

from icefall_pathways.models import rnnt
from icefall_pathways.models.losses import boundaries, pruned_loss, simple_loss
from icefall_pathways.models.rnnt import lattice

pytestmark = pytest.mark.usefixtures("cuda")

SHAPES = rnnt_shapes.SHAPES | {"seconds": [(60, 300), (25, 130), (90, 421)], "minutes": [(300, 1500), (400, 2100)]}


def losses(inputs, y, boundary, ranges=None):
    """Return the losses, the gradients of the inputs, and the ranges; given ranges replace those of the simple loss."""
    am, lm, joiner_am, joiner_lm = inputs
    simple, own_ranges = simple_loss(am, lm, y, boundary, 5, 0.0, 0.25, "builtin")
    used = own_ranges if ranges is None else ranges
    pruned = pruned_loss(add_tanh, joiner_am.float(), joiner_lm.float(), y, used, boundary, "builtin")
    return (simple, pruned), torch.autograd.grad(0.5 * simple + pruned, inputs), own_ranges


def add_tanh(am, lm):
    return torch.tanh(am + lm)


def make_inputs(sizes, dtype, vocab_size=40):
    """Return random scores, tokens and the boundary, on the CPU."""
    num_tokens, num_frames = torch.tensor(sizes).unbind(1)
    width = max(1, int(num_tokens.max()))
    y = torch.randint(1, vocab_size, (len(sizes), width)) * (torch.arange(width) < num_tokens[:, None])
    lengths = (int(num_frames.max()), width + 1) * 2
    inputs = [torch.randn(len(sizes), length, vocab_size).to(dtype).requires_grad_() for length in lengths]
    return inputs, y, boundaries(num_frames, num_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_losses_equal_those_on_the_cpu(sizes, dtype):
    assert lattice._triton_kernels() is not None
    inputs, y, boundary = make_inputs(sizes, dtype)
    expected, expected_grads, ranges = losses(inputs, y, boundary)
    on_gpu = [x.detach().cuda().requires_grad_() for x in inputs]
    actual, grads, own_ranges = losses(on_gpu, y.cuda(), boundary.cuda(), ranges.cuda())
    # Frames at which two ranges are almost equally good are rare.
    assert (own_ranges.cpu() != ranges).float().mean() < 0.005
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value.cpu(), reference, rtol=1e-5, atol=1e-5)
    tolerance = max(1e-4, torch.finfo(dtype).eps)  # gradients are rounded to the type of the inputs
    for grad, reference in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert (grad.cpu() - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_float64_losses_and_ranges_equal_those_on_the_cpu(sizes):
    (am, lm, *_), y, boundary = make_inputs(sizes, torch.float64)
    cpu, gpu = (
        rnnt.smoothed_rnnt_loss(am.to(device), lm.to(device), y.to(device), boundary.to(device), 0.1, 0.25)
        for device in ("cpu", "cuda")
    )
    for value, reference in zip(gpu, cpu, strict=True):
        torch.testing.assert_close(value.cpu(), reference, rtol=1e-10, atol=1e-10)
    # Multiples of 1/1024, so that equally good ranges are ties on both devices.
    cpu_ranges, gpu_ranges = (
        rnnt.prune_ranges(*((1024 * x).round() / 1024 for x in occupation), boundary.to(occupation[0].device), 5)
        for _, *occupation in (cpu, gpu)
    )
    assert torch.equal(gpu_ranges.cpu(), cpu_ranges)


def test_losses_without_triton_equal_those_with_it(monkeypatch):
    inputs = [torch.randn(2, length, 20, device="cuda").requires_grad_() for length in (30, 11) * 2]
    y = torch.randint(1, 20, (2, 10), device="cuda")
    boundary = boundaries(torch.tensor([30, 25]), torch.tensor([10, 8])).cuda()
    expected = losses(inputs, y, boundary)
    monkeypatch.setattr(lattice, "_triton_kernels", lambda: None)
    actual = losses(inputs, y, boundary)
    assert torch.equal(actual[2], expected[2])
    for a, b in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_losses_do_not_synchronize():
    inputs = [torch.randn(2, length, 20, device="cuda").requires_grad_() for length in (30, 11) * 2]
    y = torch.randint(1, 20, (2, 10), device="cuda")
    boundary = boundaries(torch.tensor([30, 25]), torch.tensor([10, 8])).cuda()
    losses(inputs, y, boundary)  # compiles the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses(inputs, y, boundary)
    finally:
        torch.cuda.set_sync_debug_mode("default")
