import copy

import pytest
import torch
from all_layer_types import LAYER_WEIGHTS
from torch import nn

from icefall_pathways.pathways.activation import FoldedPathways, PathwayModule, activate
from icefall_pathways.pathways.masks import MasksError

pytestmark = pytest.mark.usefixtures("device")


def entry(mask, value):
    """Return the index of the first entry of `mask` that is `value`."""
    return tuple(torch.nonzero(mask == value)[0].tolist())


@pytest.mark.parametrize("name", LAYER_WEIGHTS)
def test_only_kept_entries_affect_the_output(model, masks, x, name):
    def output():
        with torch.no_grad(), activate(model, masks, "fr"):
            return model(x)

    before, weight = output(), model.get_parameter(name)
    pruned, kept = entry(masks.mask(name, "fr"), False), entry(masks.mask(name, "fr"), True)
    with torch.no_grad():
        weight[pruned] += 10.0
    assert torch.equal(output(), before)
    with torch.no_grad():
        weight[kept] += 10.0
    assert not torch.allclose(output(), before)


def test_output_equals_output_of_premultiplied_weights(model, masks, x):
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name in masks.names:
            masked.get_parameter(name).mul_(masks.mask(name, "it"))
    with activate(model, masks, "it"):
        assert torch.equal(model(x), masked(x))


def test_folded_pathways_drop_the_least_recently_used_language(model, masks):
    size = sum(masks.codes[name].numel() * 4 for name in masks.names)
    folded = FoldedPathways(model, masks, max_bytes=2 * size)

    def use(*languages):
        for language in languages:
            with folded.activate(language):
                weight = model.linear.weight
        return weight

    first = use("en")
    assert use("fr") is not first and use("en") is first
    assert use("it", "en") is first and folded.cached_languages == ["it", "en"]
    assert torch.equal(use("fr", "it", "en"), first) and use("en") is not first
    only = FoldedPathways(model, masks, max_bytes=0)
    for language in ("en", "fr"):
        with only.activate(language):
            assert only.cached_languages == [language]


def test_excluded_parameters_are_dense(model, masks, x):
    """Also where they were active before; their products can still be computed."""
    folded = FoldedPathways(model, masks)
    with torch.no_grad(), folded.activate("en"):
        assert not torch.equal(model.linear.weight, dict(model.named_parameters())["linear.weight"])
        convolution = model.conv1d.weight
    folded.exclude(["linear.weight"])
    with torch.no_grad(), folded.activate("en"):
        assert model.linear.weight is dict(model.named_parameters())["linear.weight"]
        assert torch.equal(model.conv1d.weight, convolution)
    assert set(folded.weights("en")) == set(masks.names)


def test_folded_pathways_match_activate_and_multiply_once(model, masks, x):
    folded, outputs = FoldedPathways(model, masks), {}
    for language in ("en", "fr", "en"):
        with torch.no_grad(), activate(model, masks, language):
            expected = model(x)
        with torch.no_grad(), folded.activate(language):
            assert torch.equal(model(x), expected)
            weight = model.linear.weight
        assert outputs.setdefault(language, weight) is weight
    with folded.activate("en"):
        for another in (folded.activate("fr"), folded.activate("it"), activate(model, masks, "fr")):
            with pytest.raises(RuntimeError, match="already"), another:
                pass
    with torch.no_grad(), FoldedPathways(model, None).activate("en"):
        assert torch.equal(model(x), model(x))
        assert model.linear.weight is dict(model.named_parameters())["linear.weight"]


def test_stored_weights_and_parameter_names_do_not_change(model, masks, x):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    identities = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    with activate(model, masks, "en"):
        model(x)
        inside = model.state_dict()
        assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == identities
    for state in (inside, model.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], before[name]) for name in before)


def test_model_is_dense_after_the_context_even_after_an_exception(model, masks, x):
    dense = model(x)
    with pytest.raises(KeyError), activate(model, masks, "en"):
        raise KeyError
    assert torch.equal(model(x), dense)


@pytest.mark.parametrize("name", LAYER_WEIGHTS)
def test_gradients_are_zero_outside_the_mask(model, masks, x, name):
    PathwayModule(model, masks)("en", x).square().sum().backward()
    gradient, mask = model.get_parameter(name).grad, masks.mask(name, "en")
    assert torch.all(gradient[~mask] == 0)
    assert torch.all(gradient[mask] != 0)


def test_model_without_masks_is_dense(model, x):
    assert torch.equal(PathwayModule(model, None)("en", x), model(x))


def test_state_dict_does_not_contain_masks(model, masks):
    assert set(PathwayModule(model, masks).state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_nested_activation_is_rejected(model, masks, x):
    dense = model(x)
    with activate(model, masks, "en"), pytest.raises(RuntimeError, match="a sub-network is already active"):
        activate(model, masks, "fr").__enter__()
    assert torch.equal(model(x), dense)


def test_unknown_language_is_rejected(model, masks, x):
    with pytest.raises(MasksError, match="no pathway for language 'pl': the masks hold en, fr, it"):
        PathwayModule(model, masks)("pl", x)


def test_masks_of_another_model_are_rejected(model, masks):
    model.linear = nn.Linear(3, 3)
    with pytest.raises(MasksError, match=r"belong to another model.*linear\.weight"):
        PathwayModule(model, masks)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_products_are_reused_without_gradients(model, masks, x, context):
    model.eval()
    with context(), activate(model, masks, "fr"):
        weight = model.linear.weight
        first = model(x)
        assert torch.equal(model(x), first) and model.linear.weight is weight
    with activate(model, masks, "fr"):
        torch.testing.assert_close(model(x), first, rtol=0, atol=1e-6)  # newer torch has other kernels for gradients


def _rank(rank, port, results):
    import torch.distributed as dist
    from all_layer_types import AllLayerTypes, random_masks

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = AllLayerTypes()
    masks = random_masks(model)
    parallel = torch.nn.parallel.DistributedDataParallel(PathwayModule(model, masks), find_unused_parameters=True)
    x = torch.randn(2, 5, 8)
    parallel("en", x[rank : rank + 1]).square().mean().backward()
    shared = {name: model.get_parameter(name).grad for name in masks.names}
    model.zero_grad(set_to_none=True)
    PathwayModule(model, masks)("en", x).square().mean().backward()
    results[rank] = max(float((model.get_parameter(n).grad - g).abs().max()) for n, g in shared.items())
    dist.destroy_process_group()


def test_ddp_averages_gradients_of_the_sub_network(free_port):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_rank, (free_port, results), nprocs=2)
        assert max(results.values()) < 1e-6
