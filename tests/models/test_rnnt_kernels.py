"""The Triton kernel equals the recursion in PyTorch; without a GPU, Triton's interpreter runs it."""

import os

import pytest
import torch
from gpu import HAS_CUDA

from icefall_pathways.models.rnnt import lattice

DEVICE = "cuda" if HAS_CUDA else "cpu"
SHAPES = [(2, 0, 5), (3, 4, 7), (1, 1, 1), (2, 3, 16), (1, 6, 9)]  # (N, S, T)


@pytest.fixture(scope="module")
def forward_backward():
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    from icefall_pathways.models.rnnt import triton_kernels

    return triton_kernels.forward_backward


def make_lattice(batch_size, num_tokens, num_frames):
    """Return random arcs and starts of utterances of unequal lengths; some rows have arcs at a few frames only."""
    arcs = 5 * torch.randn(batch_size, num_tokens, num_frames, dtype=torch.float64, device=DEVICE)
    arcs[0, 1::2, : num_frames // 2] = -torch.inf
    starts = torch.randn(2, batch_size, num_frames, dtype=torch.float64, device=DEVICE)
    starts[1, 0, 1 + num_frames // 2 :] = -torch.inf
    return arcs, starts


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # NumPy, in the interpreter
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_equals_pytorch(forward_backward, shape, dtype, tolerance):
    arcs, starts = make_lattice(*shape)
    expected = lattice._forward_backward(arcs, starts)
    for actual, value in zip(forward_backward(arcs, starts, dtype), expected, strict=True):
        torch.testing.assert_close(actual, value, atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_arcs_give_non_finite_sums(forward_backward, value):
    arcs, starts = make_lattice(2, 3, 8)
    arcs[1, 1, 5] = value
    a, b = forward_backward(arcs, starts, torch.float32)
    assert not a[1, -1, -1].isfinite() and not b[1, 0, 0].isfinite()
    assert a[0, -1, -1].isfinite()
