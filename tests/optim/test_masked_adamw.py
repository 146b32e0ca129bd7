import copy

import pytest
import torch
from all_layer_types import AllLayerTypes, random_masks
from torch import nn

from icefall_pathways.optim import buckets
from icefall_pathways.optim.masked_adamw import MaskedAdamW, clip_gradients
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.pathways.activation import PathwayModule

pytestmark = pytest.mark.usefixtures("device")


def train_step(model, masks, language, optimizer, x):
    optimizer.zero_grad()
    PathwayModule(model, masks)(language, x).square().mean().backward()
    optimizer.activate(masks, language)
    optimizer.step()


def snapshot(model, optimizer):
    """Return copies of all tensors that a step may change, by parameter name."""
    tensors = {name: {"weight": parameter.detach().clone()} for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[name][key] = value.clone().expand(parameter.shape)
    return tensors


def test_step_leaves_entries_outside_the_mask_bitwise_unchanged():
    model = AllLayerTypes()
    masks = random_masks(model)
    optimizer = MaskedAdamW(model.named_parameters(), lr=0.1, weight_decay=0.5)
    for language in ("en", "fr", "en"):
        train_step(model, masks, language, optimizer, torch.randn(2, 5, 8))
    before = snapshot(model, optimizer)
    # Nonzero gradients outside the mask: the step must not rely on zeros.
    train_step(model, masks, "it", optimizer, torch.randn(2, 5, 8))
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.add_(1.0)
    optimizer.step()
    after = snapshot(model, optimizer)
    for name in masks.names:
        outside, inside = ~masks.mask(name, "it"), masks.mask(name, "it")
        for key, value in before[name].items():
            bits, bits_after = value[outside].clone(), after[name][key][outside].clone()
            assert bits.cpu().numpy().tobytes() == bits_after.cpu().numpy().tobytes(), (name, key)
        assert (after[name]["weight"] != before[name]["weight"])[inside].all()


def test_negative_zero_outside_the_mask_keeps_its_sign():
    layer = nn.Linear(2, 1, bias=False)
    masks = random_masks(layer, ("en",))
    masks.set_mask("weight", "en", torch.tensor([[True, False]]))
    with torch.no_grad():
        layer.weight[0, 1] = -0.0
    optimizer = MaskedAdamW(layer.named_parameters(), lr=0.1)
    train_step(layer, masks, "en", optimizer, torch.randn(3, 2))
    assert torch.signbit(layer.weight[0, 1])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_step_without_pruning_equals_torch_adamw(masked, weight_decay):
    model = AllLayerTypes()
    peer = copy.deepcopy(model)
    masks = random_masks(model, density=1.1) if masked else None
    optimizer = MaskedAdamW(model.named_parameters(), lr=0.01, weight_decay=weight_decay)
    matrices = [p for p in peer.parameters() if p.dim() >= 2]
    others = [p for p in peer.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98))
    for _ in range(50):
        x = torch.randn(2, 5, 8)
        train_step(model, masks, "en", optimizer, x)
        reference.zero_grad()
        peer(x).square().mean().backward()
        reference.step()
    for a, b in zip(model.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bias_correction_counts_updates_per_entry():
    """Updates of other languages do not affect the bias correction of a language's exclusive entries."""
    torch.manual_seed(1)
    shared, alone = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    alone.load_state_dict(shared.state_dict())
    masks = random_masks(shared, ("en", "fr"))
    mask = torch.rand(3, 4) < 0.5
    masks.set_mask("weight", "en", mask)
    masks.set_mask("weight", "fr", ~mask)
    optimizer = MaskedAdamW(shared.named_parameters(), lr=0.05)
    reference = torch.optim.AdamW(alone.parameters(), lr=0.05, betas=(0.9, 0.98), weight_decay=0.01)
    for i in range(40):
        gradient = torch.randn(3, 4)
        optimizer.activate(masks, "fr" if i % 5 else "en")
        shared.weight.grad = gradient.clone()
        optimizer.step()
        if i % 5 == 0:
            alone.weight.grad = gradient.clone()
            reference.step()
    torch.testing.assert_close(shared.weight[mask], alone.weight[mask], rtol=1e-5, atol=1e-6)


def test_nan_outside_the_mask_has_no_effect():
    layer = nn.Linear(2, 1, bias=False)
    masks = random_masks(layer, ("en",))
    masks.set_mask("weight", "en", torch.tensor([[True, False]]))
    optimizer = MaskedAdamW(layer.named_parameters(), lr=0.1)
    optimizer.activate(masks, "en")
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[1.0, float("nan")]])
    optimizer.step()
    assert layer.weight[0, 1] == before[0, 1] and layer.weight[0, 0] != before[0, 0]
    assert all(value.isfinite().all() for value in optimizer.state[layer.weight].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bias_correction_equals_torch_after_counts_saturate(dtype):
    model = nn.Linear(2, 2, bias=False).to(dtype)
    peer = copy.deepcopy(model)
    masks = random_masks(model, ("en",), density=1.1)
    optimizer = MaskedAdamW(model.named_parameters(), lr=0.01, betas=(0.5, 0.9), weight_decay=0.0)
    reference = torch.optim.AdamW(peer.parameters(), lr=0.01, betas=(0.5, 0.9), weight_decay=0.0)
    optimizer.activate(masks, "en")
    for _ in range(400):
        model.weight.grad = torch.randn(2, 2, dtype=dtype)
        peer.weight.grad = model.weight.grad.clone()
        optimizer.step()
        reference.step()
    assert int(optimizer.state[model.weight]["step"].max()) < 400
    torch.testing.assert_close(model.weight, peer.weight, rtol=1e-5, atol=1e-6)


def test_training_resumes_from_a_saved_state(tmp_path):
    model = AllLayerTypes()
    masks = random_masks(model)
    optimizer = MaskedAdamW(model.named_parameters(), lr=0.1)
    for language in ("en", "fr"):
        train_step(model, masks, language, optimizer, torch.randn(2, 5, 8))
    torch.save([model.state_dict(), optimizer.state_dict()["state"]], tmp_path / "state.pt")
    other = AllLayerTypes()
    resumed = MaskedAdamW(other.named_parameters(), lr=0.1)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict({"state": state, "param_groups": resumed.state_dict()["param_groups"]})
    x = torch.randn(2, 5, 8)
    train_step(model, masks, "it", optimizer, x)
    train_step(other, masks, "it", resumed, x)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert resumed.state[other.linear.weight]["step"].dtype == torch.int32


def test_clipping_uses_the_norm_of_active_entries():
    """A step with a large gradient outside the mask equals one with the active gradient scaled down beforehand."""
    model, peer = AllLayerTypes(), AllLayerTypes()
    peer.load_state_dict(model.state_dict())
    masks = random_masks(model)
    clipping = MaskedAdamW(model.named_parameters(), betas=(0.0, 0.9), eps=1.0, max_norm=1.0)
    reference = MaskedAdamW(peer.named_parameters(), betas=(0.0, 0.9), eps=1.0)
    gradients = {name: 10 * torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    active = {name: g * masks.mask(name, "fr") if name in masks.codes else g for name, g in gradients.items()}
    norm = sum(float(g.square().sum()) for g in active.values()) ** 0.5
    for trained, optimizer, scale in ((model, clipping, 1.0), (peer, reference, 1 / norm)):
        for name, parameter in trained.named_parameters():
            parameter.grad = scale * gradients[name]
        optimizer.activate(masks, "fr")
        optimizer.step()
    for a, b in zip(model.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert not torch.equal(model.linear.weight, AllLayerTypes().linear.weight)


def test_clipping_limits_the_norm_and_keeps_small_gradients():
    gradients = [torch.full((2, 2), 3.0), torch.full((4,), 4.0)]
    assert float(clip_gradients(gradients, 1.0)) == pytest.approx(10.0)
    assert sum(float(g.square().sum()) for g in gradients) == pytest.approx(1.0, rel=1e-4)
    small = torch.full((2,), 0.01)
    clip_gradients([small], 1.0)
    assert (small == 0.01).all()


def test_clipping_rejects_missing_and_keeps_nonfinite_gradients():
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        clip_gradients([], 1.0)
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        MaskedAdamW(layer.named_parameters(), max_norm=1.0).step()
    gradients = [torch.tensor([float("nan")]), torch.tensor([0.01])]
    assert clip_gradients(gradients, 1.0).isnan()
    assert gradients[1] == 0.01


def test_parameter_without_gradient_is_not_updated():
    """Its weights, moments and update count do not change."""
    pair = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    peer = copy.deepcopy(pair)
    optimizer = MaskedAdamW(pair.named_parameters(), lr=0.01)
    reference = torch.optim.AdamW(peer.parameters(), lr=0.01, betas=(0.9, 0.98))
    for update in range(6):
        for i, (layer, reference_layer) in enumerate(zip(pair, peer, strict=True)):
            gradient = torch.randn(3, 3) if i == 0 or update >= 3 else None
            layer.weight.grad, reference_layer.weight.grad = gradient, gradient
        before = pair[1].weight.detach().clone()
        optimizer.step()
        reference.step()
        assert torch.equal(pair[1].weight, before) == (update < 3)
    for a, b in zip(pair.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer_type", [MaskedAdamW, ScaledAdam])
def test_bucket_size_has_no_effect(optimizer_type, monkeypatch):
    weights = {}
    for size in (1, 40, 10**6):
        monkeypatch.setattr(buckets, "_BUCKET_SIZE", size)
        torch.manual_seed(1)
        model = AllLayerTypes()
        masks = random_masks(model)
        optimizer = optimizer_type(model.named_parameters(), lr=0.01)
        for language in ("en", "fr", "it", "en", "fr", "en"):
            train_step(model, masks, language, optimizer, torch.randn(2, 5, 8))
        weights[size] = [parameter.detach().clone() for parameter in model.parameters()]
    for size in (1, 40):
        for a, b in zip(weights[size], weights[10**6], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_masks_activated_later_keep_moments_and_counts():
    """The model first trains without masks; activating masks changes the buckets."""
    model = AllLayerTypes()
    masks = random_masks(model, density=1.1)
    peer = copy.deepcopy(model)
    optimizer, reference = MaskedAdamW(model.named_parameters()), MaskedAdamW(peer.named_parameters())
    for update in range(6):
        x = torch.randn(2, 5, 8)
        train_step(model, masks if update >= 3 else None, "en", optimizer, x)
        train_step(peer, None, "en", reference, x)
    for a, b in zip(model.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
