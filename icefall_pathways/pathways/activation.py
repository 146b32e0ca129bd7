"""Forward and backward passes through the sub-network of one language."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.bits import apply_mask
from icefall_pathways.pathways.language_cache import LanguageCache
from icefall_pathways.pathways.language_parameters import language_dependent_modules
from icefall_pathways.pathways.masks import MasksError, PathwayMasks
from icefall_pathways.pathways.prunable import parameter_owners

#: Callback with a language, a parameter name, and the gradient of the loss with respect to `mask * weight`.
GradientObserver = Callable[[str, str, Tensor], None]


@contextmanager
def activate(
    model: nn.Module, masks: PathwayMasks | None, language: str, observer: GradientObserver | None = None
) -> Iterator[None]:
    """Compute with `mask * weight` in place of every masked parameter of `model` inside this context.

    Parameters of `LanguageDependent` modules have their values in the language, with or without masks. The stored
    weights do not change: `parameters()` and `state_dict()` return them as before, copies of the model are dense, and
    gradients flow through the product to the weights, zero outside the mask. The product is zero outside the mask even
    where a weight is not finite. The products are computed once, on entry; leave and enter the context again after a
    change of the weights or the masks.

    Args:
      model: The model that the masks belong to.
      masks: The sub-networks; None runs the dense model.
      language: The language whose sub-network is active.
      observer: Called in the backward pass with the gradient of each product. This gradient is defined for all entries,
        while the gradient of the stored weight is zero outside the mask.

    Raises:
      MasksError: The masks have no such language, or the model lacks one of their parameters.
      ValueError: A language-dependent module does not have the language.
      RuntimeError: A sub-network of the model is already active.
    """
    with _shadow(_products(model, masks, language, observer).values()):
        yield


class FoldedPathways:
    """Cached sub-networks for inference: `mask * weight` is computed at the first use of a language.

    Switching the language then costs no multiplication, but every cached language takes the memory of the prunable
    weights. If they exceed `max_bytes`, the language that was used least recently is dropped, and computed again when
    needed. Later changes of weights or masks have no effect.

    Args:
      model: The model that the masks belong to.
      masks: The sub-networks, on the model's device; None runs the dense model.
      max_bytes: Memory of the cached products; one language is always cached.
    """

    def __init__(self, model: nn.Module, masks: PathwayMasks | None, max_bytes: float = math.inf) -> None:
        self.model = model
        self.masks = masks
        self._language_names = [
            f"{name}.{attribute}"
            for name, _, module in language_dependent_modules(model)
            for attribute in module.language_attributes
        ]
        self._excluded: frozenset[str] = frozenset()
        self._cache: LanguageCache[dict[str, _Product]] = LanguageCache(max_bytes, _size)

    @contextmanager
    def activate(self, language: str) -> Iterator[None]:
        """Activate the sub-network of `language` inside this context; see `activate`."""
        if self.masks is None and not self.has_language_values:
            yield
            return
        with _shadow(self._cache.get(language, partial(self._products, language, self._excluded)).values()):
            yield

    def weights(self, language: str) -> dict[str, Tensor]:
        """Compute the products of a language, by parameter name; they are not cached."""
        return {name: product.value for name, product in self._products(language, ()).items()}

    def exclude(self, names: Collection[str]) -> None:
        """Leave these parameters dense from now on, and drop their products: torch no longer computes with them."""
        self._excluded = frozenset(names)
        self._cache.clear()

    @property
    def max_bytes(self) -> float:
        """Memory of the cached products."""
        return self._cache.max_bytes

    @property
    def cached_languages(self) -> list[str]:
        """Languages whose products are cached, the most recently used one last."""
        return self._cache.languages

    @property
    def names(self) -> list[str]:
        """Names of the parameters whose values differ between languages."""
        return [*([] if self.masks is None else self.masks.names), *self._language_names]

    @property
    def has_language_values(self) -> bool:
        """True if parameters without masks depend on the language."""
        return bool(self._language_names)

    def check_language(self, language: str) -> None:
        """Check that the model has the language; a dense model has all.

        Raises:
          ValueError: It does not.
        """
        if self.masks is not None:
            self.masks.bit(language)
        _language_products(self.model, language, ())

    def are_equal(self, languages: Sequence[str]) -> bool:
        """Return True if the model computes the same in all these languages."""
        return not self.has_language_values and (self.masks is None or self.masks.share_mask(languages))

    @torch.no_grad()
    def _products(self, language: str, excluded: Collection[str]) -> "dict[str, _Product]":
        return _products(self.model, self.masks, language, excluded=excluded)


@torch.no_grad()
def language_values(model: nn.Module, languages: Sequence[str]) -> dict[str, Tensor]:
    """Return the values (L, ...) of language-dependent parameters in L languages, by parameter name.

    Raises:
      ValueError: A module does not have one of the languages.
    """
    products = [_language_products(model, language, ()) for language in languages]
    return {name: torch.stack([values[name].value for values in products]) for name in products[0]}


def _size(products: "dict[str, _Product]") -> int:
    return sum(value.numel() * value.element_size() for value, _ in products.values())


class _Product(NamedTuple):
    """The value of a parameter in a language, such as `mask * weight`, and the modules and attributes that hold it."""

    value: Tensor
    owners: list[tuple[nn.Module, str]]


def _products(
    model: nn.Module,
    masks: PathwayMasks | None,
    language: str,
    observer: GradientObserver | None = None,
    excluded: Collection[str] = (),
) -> dict[str, _Product]:
    """Return the products of masked parameters, by parameter name; `observer` as in `activate`."""
    products = _language_products(model, language, excluded)
    if masks is None:
        return products
    all_owners = parameter_owners(model)
    for name in masks.names:
        if name in excluded:
            continue
        if name not in all_owners:
            raise MasksError(
                f"the masks belong to another model, which has a parameter {name}: use masks of this model"
            )
        owners = all_owners[name]
        module, attribute = owners[0]
        parameter = module._parameters[attribute]  # `get_parameter` returns the product if one is active
        assert parameter is not None
        value = apply_mask(parameter, masks.mask(name, language))
        if observer is not None and value.requires_grad:
            value.register_hook(partial(observer, language, name))
        products[name] = _Product(value, owners)
    return products


def _language_products(model: nn.Module, language: str, excluded: Collection[str]) -> dict[str, _Product]:
    """Return the values of language-dependent parameters, by parameter name."""
    return {
        f"{name}.{attribute}": _Product(value, [(owner, attribute)])
        for name, owner, module in language_dependent_modules(model)
        for attribute, value in module.language_values(language).items()
        if f"{name}.{attribute}" not in excluded
    }


def _check_not_shadowed(owners: Iterable[tuple[nn.Module, str]]) -> None:
    for owner, attribute in owners:
        if attribute in vars(owner):
            raise RuntimeError(
                f"a sub-network is already active ({attribute} of {owner}): leave that context before entering another"
            )


@contextmanager
def _shadow(products: Iterable[_Product]) -> Iterator[None]:
    """Shadow parameters by their products inside this context."""
    values: dict[nn.Module, dict[str, Any]] = {}
    for product in products:
        _check_not_shadowed(product.owners)
        for owner, attribute in product.owners:
            values.setdefault(owner, {})[attribute] = product.value
    shadows = [_Shadow(owner, attributes) for owner, attributes in values.items()]
    for shadow in shadows:
        shadow.add()
    try:
        yield
    finally:
        for shadow in shadows:
            shadow.remove()


class _Shadow:
    """Attributes that shadow the parameters of one module in its forward pass only.

    Python looks up attributes in `__dict__` before a module's registered parameters. Copies and pickles of the module
    would contain them, so `__getstate__` is shadowed, too: they are dense, as the stored weights are.
    """

    def __init__(self, owner: nn.Module, products: dict[str, Any]) -> None:
        self._owner, self._attributes = owner, vars(owner)
        self._shadows = products | {"__getstate__": self._dense_state}
        if isinstance(owner, nn.RNNBase):
            # Recurrent modules read their weights from this list, not from their attributes.
            flat = [products.get(name, getattr(owner, name, None)) for name in owner._flat_weights_names]
            self._shadows["_flat_weights"] = flat
        self._shadowed = {name: self._attributes[name] for name in self._shadows if name in self._attributes}

    def add(self) -> None:
        self._attributes.update(self._shadows)

    def remove(self) -> None:
        for name in self._shadows:
            del self._attributes[name]
        self._attributes.update(self._shadowed)

    def _dense_state(self) -> dict[str, Any]:
        # Recurrent modules of torch 2 have a state of their own; Python 3.10 has no default to call.
        own_state = getattr(type(self._owner), "__getstate__", None)
        attributes = self._attributes if own_state is None else own_state(self._owner)
        state = {name: value for name, value in attributes.items() if name not in self._shadows}
        return state | self._shadowed


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
