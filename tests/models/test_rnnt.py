"""The built-in RNN-T losses, compared with a direct recursion, k2 and torchaudio."""

import sys

import pytest
import rnnt_shapes
import torch
from gpu import default_device
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_packages import import_k2, torchaudio_loss

from icefall_pathways.models import rnnt
from icefall_pathways.models.rnnt import lattice, prune_ranges, pruned_rnnt_loss, select_rows, smoothed_rnnt_loss
from icefall_pathways.models.rnnt.lattice import sum_paths
from icefall_pathways.models.rnnt.simple import smoothed_scores

pytestmark = pytest.mark.usefixtures("device")

SHAPES = rnnt_shapes.SHAPES | {"many tokens": [(30, 40), (25, 64)]}
SCALES = [(0.0, 0.25), (0.1, 0.2), (0.0, 0.0)]  # (am_scale, lm_scale)

lengths = st.integers(1, 12).flatmap(lambda frames: st.tuples(st.integers(0, frames), st.just(frames)))
batches = st.lists(lengths, min_size=1, max_size=4)


def make_batch(sizes, vocab_size=12, dtype=torch.float32, seed=0, columns=1):
    """Return random am, lm and tokens, padded with 0 to at least `columns`, and the boundary."""
    generator = torch.Generator(default_device()).manual_seed(seed)
    num_tokens, num_frames = torch.tensor(sizes).unbind(1)
    width = max(columns, int(num_tokens.max()))
    y = torch.randint(1, vocab_size, (len(sizes), width), generator=generator)
    am = torch.randn(len(sizes), int(num_frames.max()), vocab_size, dtype=dtype, generator=generator)
    lm = torch.randn(len(sizes), width + 1, vocab_size, dtype=dtype, generator=generator)
    boundary = torch.stack([torch.zeros_like(num_tokens)] * 2 + [num_tokens, num_frames], dim=1)
    return am.requires_grad_(), lm.requires_grad_(), y * (torch.arange(width) < num_tokens[:, None]), boundary


def make_logits(ranges, vocab_size=12, dtype=torch.float32):
    generator = torch.Generator(ranges.device).manual_seed(1)
    return torch.randn(
        *ranges.shape, vocab_size, dtype=dtype, generator=generator, device=ranges.device
    ).requires_grad_()


def ranges_of(am, lm, y, boundary, prune_range=5):
    _, px_grad, py_grad = smoothed_rnnt_loss(am, lm, y, boundary, 0.0, 0.25)
    return prune_ranges(px_grad, py_grad, boundary, prune_range)


def sum_paths_by_recursion(px, py, num_tokens, num_frames):
    """Return the log-probability of one utterance, differentiable, by the equation of the paper for each node."""
    alpha = {(0, 0): torch.zeros((), dtype=px.dtype)}
    for s in range(num_tokens + 1):
        for t in range(num_frames):
            arcs = [alpha[s - 1, t] + px[s - 1, t]] if s else []
            arcs += [alpha[s, t - 1] + py[s, t - 1]] if t else []
            if arcs:
                alpha[s, t] = torch.stack(arcs).logsumexp(dim=0)
    return alpha[num_tokens, num_frames - 1] + py[num_tokens, num_frames - 1]


def relative_difference(actual, expected):
    """Return the largest difference, relative to the largest absolute value."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-20)).item()


@settings(max_examples=25, deadline=None)
@given(batches, st.integers(0, 1000))
def test_scores_and_occupation_equal_the_recursion_of_each_node(sizes, seed):
    am, lm, y, boundary = make_batch(sizes, dtype=torch.float64, seed=seed, columns=0)
    px, py = (scores.detach().requires_grad_() for scores in smoothed_scores(am, lm, y, 0.1, 0.25))
    paths = sum_paths(px, py, boundary)
    expected = torch.stack([sum_paths_by_recursion(px[i], py[i], *size) for i, size in enumerate(sizes)])
    torch.testing.assert_close(paths.score, expected)
    px_grad, py_grad = torch.autograd.grad(expected.sum(), [px, py], allow_unused=True)
    torch.testing.assert_close(paths.px_grad, torch.zeros_like(px) if px_grad is None else px_grad)
    torch.testing.assert_close(paths.py_grad, py_grad)


@settings(max_examples=15, deadline=None)
@given(batches, st.integers(0, 1000))
def test_each_path_takes_every_token_once_and_every_frame_once(sizes, seed):
    am, lm, y, boundary = make_batch(sizes, seed=seed)
    paths = sum_paths(*smoothed_scores(am, lm, y, 0.0, 0.25), boundary)
    in_tokens = torch.arange(y.size(1)) < boundary[:, 2, None]
    in_frames = torch.arange(am.size(1)) < boundary[:, 3, None]
    tolerances = {"atol": 1e-5, "rtol": 0.0} if am.is_cuda else {}
    torch.testing.assert_close(paths.px_grad.sum(dim=2), in_tokens.double(), **tolerances)
    torch.testing.assert_close(paths.py_grad.sum(dim=1), in_frames.double(), **tolerances)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_simple_loss_and_gradients_equal_k2(sizes, scales):
    am, lm, y, boundary = make_batch(sizes)
    am_scale, lm_scale = scales
    expected, (px_grad, py_grad) = import_k2().rnnt_loss_smoothed(
        lm=lm,
        am=am,
        symbols=y,
        termination_symbol=0,
        lm_only_scale=lm_scale,
        am_only_scale=am_scale,
        boundary=boundary,
        reduction="sum",
        return_grad=True,
    )
    loss, own_px_grad, own_py_grad = smoothed_rnnt_loss(am, lm, y, boundary, am_scale, lm_scale)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(own_px_grad.float(), px_grad[:, :, :-1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own_py_grad.float(), py_grad, atol=1e-4, rtol=1e-4)
    own_grads, grads = (torch.autograd.grad(value, [am, lm]) for value in (loss, expected))
    for own_grad, grad in zip(own_grads, grads, strict=True):
        assert relative_difference(own_grad, grad) < 1e-4


@pytest.mark.parametrize("prune_range", [2, 3, 5, 100])
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_pruned_loss_and_gradients_equal_k2(sizes, prune_range):
    am, lm, y, boundary = make_batch(sizes)
    ranges = ranges_of(am, lm, y, boundary, prune_range)
    logits = make_logits(ranges)
    expected = import_k2().rnnt_loss_pruned(
        logits=logits, symbols=y, ranges=ranges, termination_symbol=0, boundary=boundary, reduction="sum"
    )
    loss = pruned_rnnt_loss(logits, y, ranges, boundary)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own_grad, grad = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    assert relative_difference(own_grad, grad) < 1e-4


@settings(max_examples=40, deadline=None)
@given(batches, st.integers(2, 6), st.integers(0, 1000))
def test_ranges_equal_k2_for_the_same_occupation(sizes, prune_range, seed):
    """The probabilities are multiples of 1/1024, so that sums are exact and equal sums are ties in both."""
    am, lm, y, boundary = make_batch(sizes, seed=seed)
    with torch.no_grad():
        _, px_grad, py_grad = smoothed_rnnt_loss(am, lm, y, boundary, 0.0, 0.25)
    px_grad, py_grad = (1024 * px_grad).round() / 1024, (1024 * py_grad).round() / 1024
    expected = import_k2().get_rnnt_prune_ranges(
        px_grad=torch.nn.functional.pad(px_grad, (0, 1)), py_grad=py_grad, boundary=boundary, s_range=prune_range
    )
    assert torch.equal(prune_ranges(px_grad, py_grad, boundary, prune_range), expected)


@settings(max_examples=40, deadline=None)
@given(batches, st.integers(2, 6), st.integers(0, 1000))
def test_ranges_contain_a_path(sizes, prune_range, seed):
    am, lm, y, boundary = make_batch(sizes, seed=seed)
    ranges = ranges_of(am, lm, y, boundary, prune_range)
    start, width = ranges[..., 0], min(prune_range, y.size(1) + 1)
    assert torch.equal(ranges, start[..., None] + torch.arange(width))
    growth = start.diff(dim=1)
    for i, (num_tokens, num_frames) in enumerate(sizes):
        growths = growth[i, : num_frames - 1]
        assert start[i, 0] == 0 or num_frames == 1
        assert growths.numel() == 0 or (growths.min() >= 0 and growths.max() < width)
        if num_frames * (width - 1) >= num_tokens:
            assert ranges[i, num_frames - 1, 0] <= num_tokens <= ranges[i, num_frames - 1, -1]
    assert pruned_rnnt_loss(make_logits(ranges), y, ranges, boundary).isfinite()


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_loss_of_all_predictor_outputs_equals_torchaudio(sizes):
    am, _, y, boundary = make_batch(sizes, columns=0)
    ranges = torch.arange(y.size(1) + 1).expand(len(y), am.size(1), -1)
    logits = make_logits(ranges)
    loss = pruned_rnnt_loss(logits, y, ranges, boundary)
    # On the CPU, because torchaudio's loss of utterances without tokens is wrong on GPUs.
    num_tokens, num_frames = (boundary[:, i].int().cpu() for i in (2, 3))
    expected = torchaudio_loss()(logits.cpu(), y.int().cpu(), num_frames, num_tokens, blank=0, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own_grad, grad = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    assert relative_difference(own_grad, grad) < 1e-4


@pytest.mark.parametrize("scales", SCALES)
def test_gradients_of_the_simple_loss_equal_finite_differences(scales):
    am, lm, y, boundary = make_batch([(3, 4), (1, 3)], vocab_size=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda am, lm: smoothed_rnnt_loss(am, lm, y, boundary, *scales)[0], (am, lm))


@pytest.mark.parametrize("prune_range", [2, 3])
def test_gradients_of_the_pruned_loss_equal_finite_differences(prune_range):
    am, lm, y, boundary = make_batch([(3, 5), (1, 3)], vocab_size=5, dtype=torch.float64)
    ranges = ranges_of(am, lm, y, boundary, prune_range)
    logits = make_logits(ranges, vocab_size=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: pruned_rnnt_loss(logits, y, ranges, boundary), (logits,))


def test_gradients_of_selected_rows_equal_finite_differences():
    am, lm, y, boundary = make_batch([(3, 5), (1, 3)], vocab_size=5, dtype=torch.float64)
    ranges = ranges_of(am, lm, y, boundary, 3)
    rows = select_rows(lm, ranges)
    assert all(
        torch.equal(rows[i, t, r], lm[i, ranges[i, t, r]])
        for i, t, r in torch.cartesian_prod(*(torch.arange(size) for size in ranges.shape)).tolist()
    )
    assert torch.autograd.gradcheck(lambda lm: select_rows(lm, ranges), (lm,))


def test_losses_of_a_batch_are_the_sums_of_its_utterances():
    am, lm, y, boundary = make_batch([(6, 15), (2, 9), (0, 4)])
    ranges = ranges_of(am, lm, y, boundary, 3)
    logits = make_logits(ranges)
    simple, pruned = 0.0, 0.0
    for i, (num_tokens, num_frames) in enumerate(boundary[:, 2:].tolist()):
        rows, tokens = slice(i, i + 1), y[i : i + 1, :num_tokens]
        own_am, own_lm = am[rows, :num_frames], lm[rows, : num_tokens + 1]
        simple += smoothed_rnnt_loss(own_am, own_lm, tokens, boundary[rows], 0.0, 0.25)[0].item()
        padded = y[rows]  # the ranges may include predictor outputs of the padding
        pruned += pruned_rnnt_loss(logits[rows, :num_frames], padded, ranges[rows, :num_frames], boundary[rows]).item()
    assert smoothed_rnnt_loss(am, lm, y, boundary, 0.0, 0.25)[0].item() == pytest.approx(simple, rel=1e-5)
    assert pruned_rnnt_loss(logits, y, ranges, boundary).item() == pytest.approx(pruned, rel=1e-5)


def test_padding_has_no_gradient():
    am, lm, y, boundary = make_batch([(6, 15), (2, 9)])
    ranges = ranges_of(am, lm, y, boundary, 5)
    logits = make_logits(ranges)
    (smoothed_rnnt_loss(am, lm, y, boundary, 0.0, 0.25)[0] + pruned_rnnt_loss(logits, y, ranges, boundary)).backward()
    for gradient in (am.grad[1, 9:], lm.grad[1, 3:], logits.grad[1, 9:], logits.grad[1][ranges[1] > 2]):
        assert gradient.abs().max() == 0
    assert am.grad[1, 8].abs().max() > 0 and lm.grad[1, 2].abs().max() > 0


def test_scores_of_padding_are_not_used():
    am, lm, y, boundary = make_batch([(6, 15), (2, 9)])
    px, py = smoothed_scores(am.detach(), lm.detach(), y, 0.0, 0.25)
    expected = sum_paths(px, py, boundary)
    for scores, num_rows in ((px, 2), (py, 3)):
        scores[1, num_rows:], scores[1, :, 9:] = float("nan"), float("nan")
    assert all(map(torch.equal, sum_paths(px, py, boundary), expected))


def test_peaked_probabilities_do_not_lose_paths():
    """Scores of thousands of nats: float32 sums, or probabilities outside the logarithm, would lose paths."""
    am, lm, y, boundary = make_batch([(8, 60)], dtype=torch.float64)
    px, py = smoothed_scores(1000 * am.detach(), 1000 * lm.detach(), y, 0.0, 0.25)
    px, py = px.requires_grad_(), py.requires_grad_()
    paths = sum_paths(px, py, boundary)
    expected = sum_paths_by_recursion(px[0], py[0], 8, 60)
    assert expected < -10_000
    torch.testing.assert_close(paths.score[0], expected, rtol=1e-12, atol=0)
    for own_grad, grad in zip(paths[1:], torch.autograd.grad(expected, [px, py]), strict=True):
        torch.testing.assert_close(own_grad, grad)


@pytest.mark.parametrize("scales", SCALES)
def test_gradients_of_contradicting_scores_sum_to_zero(scales):
    """A constant added to all scores of a frame changes no probability, also where all of them round to 0.

    The joint probabilities round to 0 if every token that one side finds likely is impossible for the other.
    """
    am, lm, y, boundary = make_batch([(6, 15), (2, 9)])
    loss, _, _ = smoothed_rnnt_loss(100 * am, 100 * lm, y, boundary, *scales)
    for gradient in torch.autograd.grad(loss, [am, lm]):
        assert gradient.sum(dim=2).abs().max() < 1e-4 * gradient.abs().max()


def test_an_impossible_token_has_a_finite_encoder_only_score():
    """All distributions of the predictor, and therefore the unigram distribution, give it the probability 0."""
    am, lm, y, boundary = make_batch([(6, 15), (2, 9)])
    lm = lm.detach().index_add(2, y[0, :1], torch.full((*lm.shape[:2], 1), -1000.0)).requires_grad_()
    loss, _, _ = smoothed_rnnt_loss(am, lm, y, boundary, 0.1, 0.0)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [am, lm]))


def test_autocast_does_not_change_the_losses(device):
    am, lm, y, boundary = make_batch([(6, 15), (2, 9)])
    ranges = ranges_of(am, lm, y, boundary, 3)
    logits = make_logits(ranges)

    def total():
        return smoothed_rnnt_loss(am, lm, y, boundary, 0.1, 0.25)[0] + pruned_rnnt_loss(logits, y, ranges, boundary)

    expected = total()
    with torch.autocast(device, dtype=torch.bfloat16):
        actual = total()
    assert torch.equal(actual, expected)
    gradients = (torch.autograd.grad(loss, [am, lm, logits]) for loss in (actual, expected))
    assert all(map(torch.equal, *gradients))


def test_a_triton_that_does_not_work_is_reported(monkeypatch):
    monkeypatch.delattr(rnnt, "triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "icefall_pathways.models.rnnt.triton_kernels", None)
    with pytest.warns(UserWarning, match="the RNN-T loss is slower, because Triton does not work: "):
        assert lattice._triton_kernels.__wrapped__() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_scores_give_a_non_finite_loss(value):
    am, lm, y, boundary = make_batch([(6, 15), (2, 9)])
    ranges = ranges_of(am, lm, y, boundary, 3)
    logits = make_logits(ranges).detach()
    logits[0, 4, 1, 2] = value
    assert not pruned_rnnt_loss(logits, y, ranges, boundary).isfinite()
    am = am.detach().clone()
    am[0, 4, 2] = value
    assert not smoothed_rnnt_loss(am, lm, y, boundary, 0.0, 0.25)[0].isfinite()
