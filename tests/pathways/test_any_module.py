"""Masks of any module: every type of layer, shared weights, weights that are not parameters, copies."""

import copy
import pickle

import pytest
import torch
from all_layer_types import random_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from icefall_pathways.pathways.activation import FoldedPathways, activate
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.pathways.prunable import prunable_parameters

D = 6


class Block(nn.Module):
    """A layer as a function (N, T, D) -> (N, T, D)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = {
            "linear": lambda: nn.Linear(D, D),
            "bilinear": lambda: nn.Bilinear(D, D, D),
            "conv": lambda: nn.Conv1d(D, D, 3, padding=1),
            "transposed": lambda: nn.ConvTranspose1d(D, D, 3, padding=1),
            "lstm": lambda: nn.LSTM(D, D, proj_size=3, bidirectional=True, batch_first=True),
            "gru cell": lambda: nn.GRUCell(D, D),
            "attention": lambda: nn.MultiheadAttention(D, 2, batch_first=True),
            "cross attention": lambda: nn.MultiheadAttention(D, 2, kdim=3, vdim=2, batch_first=True),
            "encoder layer": lambda: nn.TransformerEncoderLayer(D, 2, 5, dropout=0.0, batch_first=True),
        }[kind]()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("conv", "transposed"):
            return self.layer(x.transpose(1, 2)).transpose(1, 2)
        if self.kind == "bilinear":
            return self.layer(x, x)
        if self.kind == "lstm":
            return self.layer(x)[0]
        if self.kind == "gru cell":
            return self.layer(x.flatten(0, 1)).view(x.shape)
        if "attention" in self.kind:
            keys, values = (x, x) if self.kind == "attention" else (x[..., :3], x[..., :2])
            return self.layer(x, keys, values)[0]
        return self.layer(x)


KINDS = (
    "linear",
    "bilinear",
    "conv",
    "transposed",
    "lstm",
    "gru cell",
    "attention",
    "cross attention",
    "encoder layer",
)


def make_model(kinds: list[str], shared: list[int]) -> nn.Module:
    """Return a sequence of blocks; for each index in `shared`, a last layer shares the weight of that linear block."""
    model = nn.Sequential(*map(Block, kinds))
    for index in shared:
        block = Block("linear")
        block.layer.weight = model[index].layer.weight
        model.append(block)
    return model


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    linear = [i for i, kind in enumerate(kinds) if kind == "linear"]
    return make_model(kinds, draw(st.lists(st.sampled_from(linear), max_size=2)) if linear else [])


def premultiplied(model: nn.Module, masks: PathwayMasks, language: str) -> nn.Module:
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name in masks.names:
            masked.get_parameter(name).mul_(masks.mask(name, language))
    return masked


@settings(max_examples=40, deadline=None)
@given(model=models(), training=st.booleans(), seed=st.integers(0, 99))
def test_masks_of_any_model_multiply_every_matrix_once(model, training, seed):
    torch.manual_seed(seed)
    x, masks = torch.randn(2, 3, D), random_masks(model, ("en", "fr"))
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2 and "norm" not in name}
    assert set(masks.names) == matrices
    masks.check(model)
    model.train(training)
    expected = premultiplied(model, masks, "fr")(x)
    with activate(model, masks, "fr"):
        output = model(x)
        duplicate = copy.deepcopy(model)
    torch.testing.assert_close(output, expected)
    with FoldedPathways(model, masks).activate("fr"):
        torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(duplicate(x), model(x))
    output.square().sum().backward()
    assert not any(model.get_parameter(name).grad[~masks.mask(name, "fr")].any() for name in masks.names)


@settings(max_examples=20, deadline=None)
@given(model=models(), value=st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_weights_outside_a_mask_that_are_not_finite_have_no_effect(model, value):
    x, masks = torch.randn(2, 3, D), random_masks(model, ("en", "fr"))
    with activate(model, masks, "fr"):
        expected = model(x)
    with torch.no_grad():
        for name in masks.names:
            model.get_parameter(name)[~masks.mask(name, "fr")] = value
    with activate(model, masks, "fr"):
        assert torch.equal(model(x), expected)
        model(x).sum().backward()
    assert all(model.get_parameter(name).grad.isfinite().all() for name in masks.names)


def test_shared_weight_has_the_first_name_of_the_model_in_any_order_of_roots():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert list(prunable_parameters(model, ["b", "a"])) == ["a.weight"] == list(prunable_parameters(model))
    twice = nn.ModuleDict({"a": model["a"], "b": model["a"]})
    assert list(prunable_parameters(twice, ["b"])) == ["a.weight"]


def test_weight_shared_with_a_module_that_is_not_pruned_is_an_error():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "out": nn.Linear(3, 4), "hidden": nn.Linear(3, 3)})
    model["out"].weight = model["embed"].weight
    with pytest.raises(
        ValueError, match=r"embed.weight is shared with weight of embed \(Embedding\).*prunable = False"
    ):
        prunable_parameters(model)
    model["out"].prunable = False
    assert list(prunable_parameters(model)) == ["hidden.weight"]
    shared = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    shared["b"].weight = shared["a"].weight
    with pytest.raises(ValueError, match=r"shared with weight of b .*change the submodules"):
        prunable_parameters(shared, ["a"])


COMPUTED = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("method", COMPUTED)
def test_weight_that_is_not_a_parameter_is_an_error(method):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    masks = PathwayMasks.dense(model, ["en"])
    COMPUTED[method](model[1])
    with pytest.raises(ValueError, match=r"weight of 1 is computed from other parameters.*remove it"):
        prunable_parameters(model)
    with pytest.raises(MasksError, match="computed from other parameters"):
        masks.check(model)
    with pytest.raises(MasksError, match=r"has a parameter 1\.weight"), activate(model, masks, "en"):
        pass
    model[1].prunable = False
    assert list(prunable_parameters(model)) == ["0.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_norm_of_recurrent_and_attention_modules_is_an_error():
    with pytest.raises(ValueError, match="weight_hh_l0 of 0 is computed"):
        prunable_parameters(nn.Sequential(weight_norm(nn.LSTM(3, 3), "weight_hh_l0")))
    with pytest.raises(ValueError, match="in_proj_weight of the model is computed"):
        prunable_parameters(weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight"))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # the category depends on the version of torch
def test_scripted_module_is_an_error():
    with pytest.raises(ValueError, match="0 is a TorchScript module"):
        prunable_parameters(nn.Sequential(torch.jit.script(nn.Linear(3, 3)), nn.Linear(3, 3)))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_inside_a_pathway_are_dense(duplicate):
    for model in (nn.Linear(D, D), make_model(list(KINDS), [0])):
        masks, x = random_masks(model, ("en",)), torch.randn(2, 3, D)
        dense = model(x)
        with activate(model, masks, "en"):
            copied = duplicate(model)
            masked = model(x)
        assert not torch.allclose(masked, dense)
        assert torch.equal(copied(x), dense) and torch.equal(model(x), dense)
        with activate(copied, masks, "en"):
            assert torch.equal(copied(x), masked)
