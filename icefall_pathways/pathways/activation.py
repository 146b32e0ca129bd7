"""Forward and backward passes through the sub-network of one language."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import PathwayMasks

#: Callback with a language, a parameter name, and the gradient of the loss with respect to `mask * weight`.
GradientObserver = Callable[[str, str, Tensor], None]


@contextmanager
def activate(
    model: nn.Module, masks: PathwayMasks | None, language: str, observer: GradientObserver | None = None
) -> Iterator[None]:
    """Compute with `mask * weight` in place of every masked parameter of `model` inside this context.

    The stored weights do not change: `parameters()` and `state_dict()` return them as before, and gradients flow
    through the product to them, zero outside the mask. The products are computed once, on entry; leave and enter the
    context again after a change of the weights or the masks.

    Args:
      model: The model that the masks belong to.
      masks: The sub-networks; None runs the dense model.
      language: The language whose sub-network is active.
      observer: Called in the backward pass with the gradient of each product. This gradient is defined for all entries,
        while the gradient of the stored weight is zero outside the mask.

    Raises:
      MasksError: The masks have no such language.
      RuntimeError: A sub-network of the model is already active.
    """
    if masks is None:
        yield
        return
    with _shadow(_products(model, masks, language, observer)):
        yield


class FoldedPathways:
    """Cached sub-networks for inference: `mask * weight` is computed once per language, at its first use.

    Switching the language then costs no multiplication, but every language in use takes the memory of the prunable
    weights. Later changes of weights or masks have no effect.

    Args:
      model: The model that the masks belong to.
      masks: The sub-networks, on the model's device; None runs the dense model.
    """

    def __init__(self, model: nn.Module, masks: PathwayMasks | None) -> None:
        self.model = model
        self.masks = masks
        self._folded: dict[str, list[_Product]] = {}

    @contextmanager
    def activate(self, language: str) -> Iterator[None]:
        """Activate the sub-network of `language` inside this context; see `activate`."""
        if self.masks is None:
            yield
            return
        with _shadow(self._products(language)):
            yield

    def weights(self, language: str) -> dict[str, Tensor]:
        """Return `mask * weight` of every masked parameter for a language, by parameter name."""
        if self.masks is None:
            return {}
        return {name: product.value for name, product in zip(self.masks.names, self._products(language), strict=True)}

    def _products(self, language: str) -> "list[_Product]":
        assert self.masks is not None
        if language not in self._folded:
            with torch.no_grad():
                self._folded[language] = _products(self.model, self.masks, language)
        return self._folded[language]


class _Product(NamedTuple):
    """`mask * weight` of a parameter, the module that owns the parameter, and its attribute name."""

    owner: nn.Module
    attribute: str
    value: Tensor


def _products(
    model: nn.Module, masks: PathwayMasks, language: str, observer: GradientObserver | None = None
) -> list[_Product]:
    """Return the products of all masked parameters; `observer` as in `activate`."""
    products = []
    for name in masks.names:
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        _check_not_shadowed(owner, attribute)
        value = _masked(owner.get_parameter(attribute), masks.mask(name, language))
        if observer is not None and value.requires_grad:
            value.register_hook(partial(observer, language, name))
        products.append(_Product(owner, attribute, value))
    return products


def _check_not_shadowed(owner: nn.Module, attribute: str) -> None:
    if attribute in owner.__dict__:
        raise RuntimeError(
            f"a sub-network is already active ({attribute} of {owner}): leave that context before entering another"
        )


@contextmanager
def _shadow(products: Iterable[_Product]) -> Iterator[None]:
    """Shadow parameters by their products inside this context."""
    shadowed: list[_Product] = []
    flat_weights: dict[nn.RNNBase, Any] = {}
    try:
        for product in products:
            _check_not_shadowed(product.owner, product.attribute)
            # Python looks up attributes in __dict__ before a module's registered parameters, so the product shadows the
            # parameter in the module's forward only.
            product.owner.__dict__[product.attribute] = product.value
            shadowed.append(product)
        for recurrent in {product.owner for product in shadowed if isinstance(product.owner, nn.RNNBase)}:
            # Recurrent modules read their weights from this list, not from their attributes.
            flat_weights[recurrent] = recurrent._flat_weights
            recurrent.__dict__["_flat_weights"] = [getattr(recurrent, name) for name in recurrent._flat_weights_names]
        yield
    finally:
        for owner, attribute, _ in shadowed:
            del owner.__dict__[attribute]
        for recurrent, weights in flat_weights.items():
            recurrent.__dict__["_flat_weights"] = weights


def _masked(weight: nn.Parameter, mask: Tensor) -> Tensor:
    # Products of mixed dtypes, and casts from bool to float, are several times slower.
    return weight * mask.view(torch.uint8).to(weight.dtype)


class PathwayModule(nn.Module):
    """A model whose forward pass runs the sub-network of a given language; wrap this module in DDP.

    Args:
      model: Any module; the names of its parameters get the prefix `model.`.
      masks: The sub-networks, on the model's device; None runs the dense model. The state_dict does not contain them.
      observer: See `activate`.

    Raises:
      MasksError: The masks do not fit the model.
    """

    def __init__(self, model: nn.Module, masks: PathwayMasks | None, observer: GradientObserver | None = None) -> None:
        super().__init__()
        if masks is not None:
            masks.check(model)
        self.model = model
        self.masks = masks
        self.observer = observer

    def forward(self, language: str, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output for the other arguments, computed by the sub-network of `language`."""
        with activate(self.model, self.masks, language, self.observer):
            return self.model(*args, **kwargs)
