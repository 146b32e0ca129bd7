import copy

import pytest
import torch
from all_layer_types import AllLayerTypes, random_masks
from public_numbers import load_numbers
from torch import nn

from icefall_pathways.optim import scaled_adam
from icefall_pathways.optim.scaled_adam import ScaledAdam
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.pathways.masks import PathwayMasks

pytestmark = pytest.mark.usefixtures("device")


class Weights(nn.Module):
    """A module that consists of parameters."""

    def __init__(self, values):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value.clone()))


@pytest.mark.parametrize("trace", ["trace_clip", "trace_noclip_eden"])
def test_steps_equal_icefall(trace):
    numbers = load_numbers("optim")
    expected, gradients = numbers[trace], numbers["grads"]
    model = Weights(numbers["init"])
    scale = expected["clipping_scale"]
    optimizer = ScaledAdam(model.named_parameters(), clipping_scale=None if scale is None else float(scale))
    compared = 0
    for step, lr in enumerate(expected["lrs"].tolist(), 1):
        optimizer.param_groups[0]["lr"] = lr
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name][step - 1].clone() if name in gradients else None
        optimizer.step()
        for name, value in expected["values"].get(str(step), {}).items():
            torch.testing.assert_close(model.get_parameter(name).detach(), value, rtol=2e-5, atol=1e-7)
            compared += 1
    assert compared == 9 * 19
    if scale is not None:
        statistics = optimizer.state["shared"]
        torch.testing.assert_close(statistics["norms"], expected["clip_state"]["model_norms"], rtol=1e-5, atol=0)
        assert float(statistics["threshold"]) == pytest.approx(float(expected["clip_state"]["model_norm_threshold"]))


def masked_weights(*languages, density=0.5):
    """Return a model (a masked matrix, an unmasked vector, an unmasked scalar) and masks of the languages."""
    model = nn.Module()
    model.linear = nn.Linear(6, 5)
    model.scale = nn.Parameter(torch.tensor(0.3))
    return model, random_masks(model, languages, density)


def take_step(optimizer, model, masks, language, gradients):
    optimizer.activate(masks, language)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def random_gradients(model):
    return [torch.randn_like(parameter) for parameter in model.parameters()]


def test_step_leaves_entries_outside_the_mask_bitwise_unchanged():
    model = AllLayerTypes()
    masks = random_masks(model)
    optimizer = ScaledAdam(model.named_parameters())
    languages = ["en", "fr", "it"] * 5  # past the period and the first median
    for language in languages:
        take_step(optimizer, model, masks, language, random_gradients(model))
    for language in ("it", "it", "it", "it"):  # a whole period, with a change of the scales
        before = {
            n: {"weight": p.detach().clone()} | copy.deepcopy(optimizer.state[p]) for n, p in masked(model, masks)
        }
        others = {code: copy.deepcopy(optimizer.state[code]) for code in ("en", "fr")}
        take_step(optimizer, model, masks, language, random_gradients(model))
        for name, parameter in masked(model, masks):
            outside = ~masks.mask(name, language)
            after = {"weight": parameter.detach()} | optimizer.state[parameter]
            assert set(after) == {"weight", "exp_avg_sq", "delta", "step"}
            for key, value in before[name].items():
                assert value[outside].cpu().numpy().tobytes() == after[key][outside].cpu().numpy().tobytes(), (
                    name,
                    key,
                )
            assert (after["weight"] != before[name]["weight"])[~outside].all()
        for code, statistics in others.items():
            assert all(torch.equal(value, optimizer.state[code][key]) for key, value in statistics.items())


def masked(model, masks):
    return [(name, parameter) for name, parameter in model.named_parameters() if name in masks.codes]


@pytest.mark.parametrize("outside", [-0.0, float("nan"), float("inf")])
def test_negative_zero_and_values_that_are_not_finite_outside_the_mask_have_no_effect(outside):
    """Neither as weight nor as gradient."""
    results = []
    for value, gradient in ((0.5, 2.0), (outside, float("nan"))):
        layer = nn.Linear(3, 1, bias=False)
        masks = random_masks(layer, ("en",))
        masks.set_mask("weight", "en", torch.tensor([[True, True, False]]))
        before = torch.tensor([[0.3, -0.2, value]])
        layer.weight.data.copy_(before)
        optimizer = ScaledAdam(layer.named_parameters())
        for _ in range(12):
            take_step(optimizer, layer, masks, "en", [torch.tensor([[1.0, 0.5, gradient]])])
        weight = layer.weight.detach()
        assert weight[0, 2].cpu().numpy().tobytes() == before[0, 2].cpu().numpy().tobytes()
        assert (weight < before)[0, :2].all()
        results.append([weight[0, :2], *(v for s in (layer.weight, "en") for v in optimizer.state[s].values())])
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_masked_tensor_trains_as_a_tensor_of_its_active_entries():
    """Including the RMS, changes of the scale, and clipping."""
    sparse, small = nn.Linear(6, 5, bias=False), nn.Module()
    masks = random_masks(sparse, ("en",))
    active = masks.mask("weight", "en")
    small.weight = nn.Parameter(sparse.weight.detach()[active])
    optimizer, reference = ScaledAdam(sparse.named_parameters()), ScaledAdam(small.named_parameters())
    for step in range(130):
        gradient = torch.randn(5, 6) * (50 if step in (24, 61, 115) else 1)
        take_step(optimizer, sparse, masks, "en", [gradient])
        take_step(reference, small, None, "", [gradient[active]])
    torch.testing.assert_close(sparse.weight[active], small.weight, rtol=1e-4, atol=1e-6)


def test_updates_are_counted_only_until_bias_corrections_end(monkeypatch):
    """Counting takes half of the overhead of masks; omitting it must not change any bit."""
    torch.manual_seed(5)
    model, masks = masked_weights("en", "fr")
    other, other_masks = copy.deepcopy(model), copy.deepcopy(masks)
    optimizers = [ScaledAdam(m.named_parameters(), lr=1e-3) for m in (model, other)]
    lookups = []
    lookup = scaled_adam.lookup
    monkeypatch.setattr(scaled_adam, "lookup", lambda table, counts: lookups.append(1) or lookup(table, counts))
    longest = len(optimizers[0]._correction)

    def num_counted(num_steps):
        """Take steps; return in how many the first optimizer counts updates. The second always does."""
        total = 0
        for _ in range(num_steps):
            gradients = random_gradients(model)
            lookups.clear()
            take_step(optimizers[0], model, masks, "en", gradients)
            total += len(lookups)
            optimizers[1]._min_updates.clear()
            take_step(optimizers[1], other, other_masks, "en", gradients)
        for key in ("weight", "bias"):
            pair = [getattr(m.linear, key) for m in (model, other)]
            assert torch.equal(*pair)
            for name in optimizers[0].state[pair[0]]:
                assert torch.equal(*(o.state[p][name] for o, p in zip(optimizers, pair, strict=True))), name
        return total

    assert num_counted(longest + 5) == longest
    kept, is_reset = torch.rand(2, 5, 6) < 0.7
    for changed in (masks, other_masks):
        changed.set_mask("linear.weight", "en", kept)
    assert num_counted(longest + 5) == longest, "entries that are active again have no updates"
    for optimizer in optimizers:
        optimizer.reset_entries("linear.weight", is_reset)
    assert num_counted(3) == 3, "their counts are reset"
    assert num_counted(longest) == longest - 3
    optimizers[0].load_state_dict(optimizers[0].state_dict())
    assert num_counted(3) == 3, "the counts of a loaded state are unknown"


def test_languages_without_common_entries_train_independently():
    """One language is rare and has larger gradients."""
    together = nn.Linear(6, 5, bias=False)
    masks = random_masks(together, ("en", "fr"))
    masks.set_mask("weight", "fr", ~masks.mask("weight", "en"))
    alone = {code: copy.deepcopy(together) for code in masks.languages}
    optimizer = ScaledAdam(together.named_parameters())
    references = {code: ScaledAdam(model.named_parameters()) for code, model in alone.items()}
    for step in range(150):
        code = "fr" if step % 7 == 0 else "en"
        gradient = torch.randn(5, 6) * (30 if code == "fr" else 1)
        take_step(optimizer, together, masks, code, [gradient])
        take_step(references[code], alone[code], masks, code, [gradient])
    for code, model in alone.items():
        mask = masks.mask("weight", code)
        assert torch.equal(together.weight[mask], model.weight[mask])


def test_dense_masks_have_no_effect():
    """Languages with the same mask share their statistics, as in the dense model."""
    model, masks = masked_weights("en", "fr", density=1.1)
    dense = copy.deepcopy(model)
    optimizer, reference = ScaledAdam(model.named_parameters()), ScaledAdam(dense.named_parameters())
    for step in range(130):
        gradients = random_gradients(model)
        take_step(optimizer, model, masks, ("en", "fr")[step % 2], gradients)
        take_step(reference, dense, None, "", gradients)
    for a, b in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_language_has_its_own_statistics_once_its_mask_diverges():
    model, masks = masked_weights("en", "fr", density=1.1)
    optimizer = ScaledAdam(model.named_parameters())
    take_step(optimizer, model, masks, "fr", random_gradients(model))
    assert int(optimizer.state["en"]["step"]) == 1 and "fr" not in optimizer.state
    masks.set_mask("linear.weight", "fr", torch.rand(5, 6) < 0.5)
    take_step(optimizer, model, masks, "fr", random_gradients(model))
    assert int(optimizer.state["en"]["step"]) == 1 and int(optimizer.state["fr"]["step"]) == 1
    assert int(optimizer.state["shared"]["step"]) == 2


def test_clipping_threshold_depends_on_the_gradients_of_the_language():
    model, masks = masked_weights("en", "fr")
    optimizer = ScaledAdam(model.named_parameters())
    for _ in range(11):
        take_step(optimizer, model, masks, "en", [torch.ones_like(p) for p in model.parameters()])
        take_step(optimizer, model, masks, "fr", [100 * torch.ones_like(p) for p in model.parameters()])
    thresholds = [float(optimizer.state[code]["threshold"]) for code in ("en", "fr")]
    assert thresholds[1] / thresholds[0] == pytest.approx(100, rel=0.5)


def test_nonfinite_gradients_are_skipped():
    model, _ = masked_weights("en")
    optimizer = ScaledAdam(model.named_parameters())
    for _ in range(3):
        take_step(optimizer, model, None, "", random_gradients(model))
    bad = random_gradients(model)
    by_name = dict(zip(dict(model.named_parameters()), bad, strict=True))
    by_name["linear.weight"][0, 0], by_name["linear.bias"][0] = float("nan"), float("inf")
    take_step(optimizer, model, None, "", bad)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(value.isfinite().all() for p in model.parameters() for value in optimizer.state[p].values())


def test_persistently_nonfinite_gradients_are_an_error():
    model, _ = masked_weights("en")
    optimizer = ScaledAdam(model.named_parameters())
    bad = [torch.full_like(parameter, float("inf")) for parameter in model.parameters()]
    take_step(optimizer, model, None, "", random_gradients(model))
    with pytest.raises(ValueError, match="not finite in half of the last 10 steps"):
        for _ in range(10):
            take_step(optimizer, model, None, "", bad)


@pytest.mark.parametrize("masked", [False, True])
def test_training_resumes_from_a_saved_state(tmp_path, masked):
    model = AllLayerTypes()
    masks = random_masks(model) if masked else None
    optimizer = ScaledAdam(model.named_parameters())
    for language in ("en", "fr", "it") * 4:
        train_step(model, masks, language, optimizer, torch.randn(2, 5, 8))
    torch.save([model.state_dict(), optimizer.state_dict()["state"]], tmp_path / "state.pt")
    other = AllLayerTypes()
    resumed = ScaledAdam(other.named_parameters())
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict({"state": state, "param_groups": resumed.state_dict()["param_groups"]})
    for language in ("it", "en", "fr", "it", "it", "it"):
        x = torch.randn(2, 5, 8)
        train_step(model, masks, language, optimizer, x)
        train_step(other, masks, language, resumed, x)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def train_step(model, masks, language, optimizer, x):
    optimizer.zero_grad(set_to_none=True)
    PathwayModule(model, masks)(language, x).square().mean().backward()
    optimizer.activate(masks, language)
    optimizer.step()


def test_masks_that_cover_other_parameters_are_rejected():
    model, masks = masked_weights("en")
    optimizer = ScaledAdam(model.named_parameters())
    take_step(optimizer, model, None, "", random_gradients(model))
    with pytest.raises(ValueError, match="masks must cover the same parameters throughout a training"):
        take_step(optimizer, model, masks, "en", random_gradients(model))


def test_canonical_language_is_the_first_with_the_same_mask():
    layer = nn.Linear(4, 4)
    masks = PathwayMasks.dense(layer, ["en", "fr", "it", "nl"])
    some = torch.rand(4, 4) < 0.5
    for code in ("fr", "nl"):
        masks.set_mask("weight", code, some)
    assert [masks.canonical_language(code) for code in masks.languages] == ["en", "fr", "en", "fr"]
