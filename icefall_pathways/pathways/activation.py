"""Running a model through one language's sub-network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

#: Is told a language, a parameter's name, and the gradient of the loss at the weights that the language ran through.
GradientObserver = Callable[[str, str, Tensor], None]


@contextmanager
def activate(
    model: nn.Module, masks: PathwayMasks | None, language: str, observer: GradientObserver | None = None
) -> Iterator[None]:
    """Inside this context the model computes with `mask * weight` for every parameter that the masks cover.

    The stored weights are never touched: `parameters()` and `state_dict()` give them as ever, and gradients flow
    through the product to them, zero outside the mask. The products are made once, on entering; enter anew after the
    weights or the masks have changed.

    Args:
      model: The model that the masks were made for.
      masks: The sub-networks; None runs the dense model.
      language: Whose sub-network to run.
      observer: Called in the backward pass with the gradient of each product, which is there for all entries, while
        that of the stored weight is zero outside the mask.

    Raises:
      MasksError: The masks do not know the language.
      RuntimeError: The model runs through a sub-network already.
    """
    if masks is None:
        yield
        return
    with _shadow(_products(model, masks, language, observer)):
        yield


class FoldedPathways:
    """The sub-networks of a model that is no longer trained, each multiplied once, at its first use.

    Switching languages then takes no products, for the memory of the prunable weights per language used. Later changes
    of weights or masks are not seen.

    Args:
      model: The model that the masks were made for.
      masks: The sub-networks, on the model's device; None runs the dense model.
    """

    def __init__(self, model: nn.Module, masks: PathwayMasks | None) -> None:
        self.model = model
        self.masks = masks
        self._folded: dict[str, list[_Product]] = {}

    @contextmanager
    def activate(self, language: str) -> Iterator[None]:
        """Run the model through the sub-network of `language` inside this context; see `activate`."""
        if self.masks is None:
            yield
            return
        with _shadow(self._products(language)):
            yield

    def weights(self, language: str) -> dict[str, Tensor]:
        """What the model computes with in a language in place of parameters of these names."""
        if self.masks is None:
            return {}
        return {name: one.value for name, one in zip(self.masks.names, self._products(language), strict=True)}

    def _products(self, language: str) -> "list[_Product]":
        assert self.masks is not None
        if language not in self._folded:
            with torch.no_grad():
                self._folded[language] = _products(self.model, self.masks, language)
        return self._folded[language]


class _Product(NamedTuple):
    """`mask * weight` of a parameter, the module that has this parameter, and its name there."""

    owner: nn.Module
    attribute: str
    value: Tensor


def _products(
    model: nn.Module, masks: PathwayMasks, language: str, observer: GradientObserver | None = None
) -> list[_Product]:
    """The products of every parameter that the masks cover; `observer` as in `activate`."""
    products = []
    for name in masks.names:
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        _check_free(owner, attribute)
        value = _masked(owner.get_parameter(attribute), masks.mask(name, language))
        if observer is not None and value.requires_grad:
            value.register_hook(partial(observer, language, name))
        products.append(_Product(owner, attribute, value))
    return products


def _check_free(owner: nn.Module, attribute: str) -> None:
    if attribute in owner.__dict__:
        raise RuntimeError(
            f"{attribute} of {owner} runs through a sub-network already: leave that context before entering another"
        )


@contextmanager
def _shadow(products: Iterable[_Product]) -> Iterator[None]:
    """Let modules compute with products in place of their parameters."""
    shadowed: list[_Product] = []
    flat_weights: dict[nn.RNNBase, Any] = {}
    try:
        for product in products:
            _check_free(product.owner, product.attribute)
            # Python finds an attribute in __dict__ before a module's registered parameters, so the product shadows the
            # parameter for the module's forward and for nobody else.
            product.owner.__dict__[product.attribute] = product.value
            shadowed.append(product)
        for recurrent in {product.owner for product in shadowed if isinstance(product.owner, nn.RNNBase)}:
            # Recurrent modules compute with this list, not with their attributes.
            flat_weights[recurrent] = recurrent._flat_weights
            recurrent.__dict__["_flat_weights"] = [getattr(recurrent, name) for name in recurrent._flat_weights_names]
        yield
    finally:
        for owner, attribute, _ in shadowed:
            del owner.__dict__[attribute]
        for recurrent, weights in flat_weights.items():
            recurrent.__dict__["_flat_weights"] = weights


def _masked(weight: nn.Parameter, mask: Tensor) -> Tensor:
    # In the weight's own type: a product of different types is several times slower. Nor is bool to float direct.
    return weight * mask.view(torch.uint8).to(weight.dtype)


class PathwayModule(nn.Module):
    """A model whose forward takes a language and runs through its sub-network; what DDP wraps.

    Args:
      model: Any module; its parameters keep their names under `model.`.
      masks: The sub-networks, on the model's device; None runs the dense model. They are no part of the state_dict.
      observer: See `activate`.

    Raises:
      MasksError: The masks are for another model.
    """

    def __init__(self, model: nn.Module, masks: PathwayMasks | None, observer: GradientObserver | None = None) -> None:
        super().__init__()
        if masks is not None:
            masks.check(model)
        self.model = model
        self.masks = masks
        self.observer = observer

    def forward(self, language: str, *args: Any, **kwargs: Any) -> Any:
        """The model's forward of the other arguments, through the sub-network of `language`."""
        with activate(self.model, self.masks, language, self.observer):
            return self.model(*args, **kwargs)
