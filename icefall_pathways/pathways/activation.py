"""Running a model through one language's sub-network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

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
    shadowed: list[tuple[nn.Module, str]] = []
    flat_weights: dict[nn.RNNBase, Any] = {}
    try:
        for name in masks.names:
            owner_name, _, attribute = name.rpartition(".")
            owner = model.get_submodule(owner_name)
            if attribute in owner.__dict__:
                raise RuntimeError(
                    f"{name} runs through a sub-network already: leave that context before entering another"
                )
            # Python finds an attribute in __dict__ before a module's registered parameters, so the product shadows the
            # parameter for the module's forward and for nobody else.
            product = _masked(owner.get_parameter(attribute), masks.mask(name, language))
            if observer is not None and product.requires_grad:
                product.register_hook(partial(observer, language, name))
            owner.__dict__[attribute] = product
            shadowed.append((owner, attribute))
        for owner in {owner for owner, _ in shadowed if isinstance(owner, nn.RNNBase)}:
            # Recurrent modules compute with this list, not with their attributes.
            flat_weights[owner] = owner._flat_weights
            owner.__dict__["_flat_weights"] = [getattr(owner, name) for name in owner._flat_weights_names]
        yield
    finally:
        for owner, attribute in shadowed:
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
