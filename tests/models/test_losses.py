"""The losses equal icefall's, and torchaudio's without pruning."""

import sys
import types

import pytest
import torch
from optional_packages import import_k2, torchaudio_loss
from public_numbers import load_numbers

from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.losses import (
    boundaries,
    ctc_loss,
    loss_scales,
    pruned_loss,
    resolve_rnnt_loss,
    simple_loss,
)
from icefall_pathways.models.predictor import Predictor

pytestmark = pytest.mark.usefixtures("device")


class _Head(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.decoder = Predictor(30, 48, 2)
        self.joiner = Joiner(64, 48, 40, 30)
        self.simple_am_proj = torch.nn.Linear(64, 30)
        self.simple_lm_proj = torch.nn.Linear(48, 30)
        self.load_state_dict({name: weights[name] for name in self.state_dict()})

    def join(self, am, lm):
        return self.joiner(am, lm, project_input=False)


@pytest.fixture(scope="module")
def reference(device):
    return load_numbers("causal")


@pytest.fixture(params=["k2", "builtin"])
def implementation(request):
    if request.param == "k2":
        import_k2()
    return request.param


@pytest.mark.parametrize("case", ["default", "am_scaled", "plain"])
def test_losses_equal_icefall(reference, case, implementation):
    expected, head = reference["loss"][case], _Head(reference["state_dict"])
    y_lens = torch.tensor([len(tokens) for tokens in reference["loss"]["y"]])
    y = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in reference["loss"]["y"]], batch_first=True)
    encoder_out = reference["loss"]["encoder_out"].clone().requires_grad_()
    boundary = boundaries(reference["loss"]["enc_lens"], y_lens)
    decoder_out = head.decoder(torch.nn.functional.pad(y, (1, 0)))

    simple, ranges = simple_loss(
        head.simple_am_proj(encoder_out),
        head.simple_lm_proj(decoder_out),
        y,
        boundary,
        expected["prune_range"],
        am_scale=float(expected["am_scale"]),
        lm_scale=float(expected["lm_scale"]),
        implementation=implementation,
    )
    am, lm = head.joiner.encoder_proj(encoder_out), head.joiner.decoder_proj(decoder_out)
    # The posteriors of this reference are peaked, so the best ranges depend on rounding: use those of the reference.
    pruned = pruned_loss(head.join, am, lm, y, expected["ranges"], boundary, implementation)

    assert ranges.shape == expected["ranges"].shape
    assert simple.item() == pytest.approx(expected["simple_loss"], rel=1e-5)
    assert pruned.item() == pytest.approx(expected["pruned_loss"], rel=1e-5)
    (0.5 * simple + pruned).backward()
    torch.testing.assert_close(encoder_out.grad, expected["enc_grad_of_half_simple_plus_pruned"], atol=1e-4, rtol=1e-4)
    for name, gradient in expected.get("param_grads", {}).items():
        torch.testing.assert_close(head.get_parameter(name).grad, gradient, atol=1e-3, rtol=1e-4)


def test_ranges_equal_k2(implementation):
    numbers = load_numbers("rnnt")
    for case in numbers["cases"]:
        loss, ranges = simple_loss(
            numbers["am"],
            numbers["lm"],
            numbers["symbols"],
            numbers["boundary"],
            case["s_range"],
            am_scale=float(case["am_only_scale"]),
            lm_scale=float(case["lm_only_scale"]),
            implementation=implementation,
        )
        torch.testing.assert_close(loss, case["simple_loss"].sum(), rtol=1e-5, atol=0)
        assert torch.equal(ranges, case["ranges"])


def test_unpruned_loss_equals_torchaudio(implementation):
    y, y_lens, lens = torch.randint(1, 12, (3, 6)), torch.tensor([6, 2, 4]), torch.tensor([15, 9, 4])
    y = y * (torch.arange(6) < y_lens[:, None])
    am = torch.randn(3, 15, 8, requires_grad=True)
    lm = torch.randn(3, 7, 8, requires_grad=True)
    joiner = Joiner(8, 8, 8, 12)

    def join(am, lm):
        return joiner(am, lm, project_input=False)

    boundary = boundaries(lens, y_lens)
    _, ranges = simple_loss(torch.randn(3, 15, 12), torch.randn(3, 7, 12), y, boundary, 100, 0.0, 0.25, implementation)
    assert ranges.shape == (3, 15, 7)
    actual = pruned_loss(join, am, lm, y, ranges, boundary, implementation)
    actual_grads = torch.autograd.grad(actual, [am, lm])
    expected = torchaudio_loss()(
        join(am[:, :, None], lm[:, None]), y.int(), lens.int(), y_lens.int(), blank=0, reduction="sum"
    )
    expected_grads = torch.autograd.grad(expected, [am, lm])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    for actual_grad, expected_grad in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual_grad, expected_grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_low_precision_are_summed_in_single_precision(implementation, dtype):
    torch.manual_seed(2)
    y, boundary = torch.randint(1, 12, (2, 6)), boundaries(torch.tensor([20, 15]), torch.tensor([6, 4]))
    am, lm = (8 * torch.randn(2, 20, 12)).to(dtype), (8 * torch.randn(2, 7, 12)).to(dtype)

    def losses(am, lm):
        simple, ranges = simple_loss(am, lm, y, boundary, 3, 0.1, 0.25, implementation)
        joined = pruned_loss(lambda a, b: (a + b).to(dtype), am, lm, y, ranges, boundary, implementation)
        return simple, joined, ranges

    assert all(map(torch.equal, losses(am, lm), losses(am.float(), lm.float())))


def test_error_names_the_utterances_with_too_few_frames():
    with pytest.raises(ValueError, match="utterance 1 has 3 for 4 tokens, utterance 2 has 0 for 0 tokens"):
        boundaries(torch.tensor([4, 3, 0]), torch.tensor([4, 4, 0]))


@pytest.fixture
def fresh_choice():
    """Forget which implementations could be imported."""
    resolve_rnnt_loss.cache_clear()
    yield
    resolve_rnnt_loss.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_auto_is_k2_where_it_can_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", types.ModuleType("k2"))
    assert [resolve_rnnt_loss(choice) for choice in ("auto", "k2", "builtin")] == ["k2", "k2", "builtin"]


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.filterwarnings("error")
def test_auto_is_builtin_without_k2(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    assert [resolve_rnnt_loss(choice) for choice in ("auto", "builtin")] == ["builtin", "builtin"]
    with pytest.raises(ValueError, match=r"--rnnt-loss k2 needs k2, .* or use --rnnt-loss builtin"):
        resolve_rnnt_loss("k2")


@pytest.mark.usefixtures("fresh_choice")
def test_a_k2_of_another_torch_is_reported(monkeypatch, tmp_path):
    (tmp_path / "k2.py").write_text("raise ImportError('k2 was built for torch 1.0\\nBut this is another one')")
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match=r"k2 is installed but cannot be imported \(k2 was built for torch 1.0\)"):
        assert resolve_rnnt_loss("auto") == "builtin"
    with pytest.raises(ValueError, match=r"cannot be imported \(k2 was built for torch 1.0\): install the build for"):
        resolve_rnnt_loss("k2")


def test_prune_range_below_two_is_rejected():
    boundary = boundaries(torch.tensor([4]), torch.tensor([2]))
    with pytest.raises(ValueError, match="prune_range is 1: expected at least 2"):
        simple_loss(torch.randn(1, 4, 5), torch.randn(1, 3, 5), torch.tensor([[1, 2]]), boundary, 1, 0.0, 0.25)


def test_ctc_loss_of_an_utterance_without_alignment_is_zero():
    logits = torch.randn(2, 4, 6, requires_grad=True)
    y, y_lens = torch.tensor([[1, 2, 3], [1, 1, 1]]), torch.tensor([3, 3])  # three equal tokens need five frames
    loss = ctc_loss(logits, torch.tensor([4, 4]), y, y_lens)
    torch.testing.assert_close(loss, ctc_loss(logits[:1], torch.tensor([4]), y[:1], y_lens[:1]))
    loss.backward()
    assert logits.grad[1].abs().sum() == 0


def test_loss_scales_are_linear_during_warm_up():
    assert loss_scales(0, 2000, 0.5) == (1.0, 0.1)
    assert loss_scales(1000, 2000, 0.5) == pytest.approx((0.75, 0.55))
    assert loss_scales(2000, 2000, 0.5) == loss_scales(9000, 2000, 0.5) == (0.5, 1.0)
    assert loss_scales(1, 0, 0.5) == (0.5, 1.0)
