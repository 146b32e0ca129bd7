"""Parameters whose value depends on the language other than by masks, such as a bias with a vector per language."""

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from icefall_pathways.pathways.masks import MasksHeader, PathwayMasks, code_type


class LanguageDependent(Protocol):
    """A module that computes with other values of its parameters in each language.

    Attributes:
      language_attributes: The parameters whose values depend on the language; an attribute of the class.
    """

    language_attributes: tuple[str, ...]

    def language_values(self, language: str) -> dict[str, Tensor]:
        """Return the values of `language_attributes` while the language is active.

        Raises:
          ValueError: The module does not have the language.
        """

    def language_of_parameters(self) -> dict[str, str]:
        """Return the language of each parameter that only one language uses, by the parameter's attribute."""


def language_dependent_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, LanguageDependent]]:
    """Yield the name of each language-dependent module of a model, and the module, typed as both of its types."""
    for name, module in model.named_modules():
        if hasattr(type(module), "language_attributes"):  # isinstance takes 20 times as long, in every forward pass
            yield name, module, cast(LanguageDependent, module)


def add_language_parameters(
    model: nn.Module, masks: PathwayMasks | None, languages: Sequence[str]
) -> PathwayMasks | None:
    """Return `masks` that also cover the parameters that only one language uses, for the optimizer.

    With these masks, an update of a language leaves the parameters of the others and their state bitwise unchanged.

    Args:
      model: The model.
      masks: Not changed; None for a dense model.
      languages: The languages of the result if `masks` is None.
    """
    owners = {
        f"{name}.{attribute}": language
        for name, _, module in language_dependent_modules(model)
        for attribute, language in module.language_of_parameters().items()
    }
    if not owners:
        return masks
    header = MasksHeader(tuple(languages)) if masks is None else masks.header
    codes = {} if masks is None else dict(masks.codes)
    parameters, dtype = dict(model.named_parameters()), code_type(len(header.languages))
    for name in owners:
        codes[name] = torch.zeros_like(parameters[name], dtype=dtype)
    extended = PathwayMasks(header, codes)
    for name, language in owners.items():
        if language in header.languages:
            extended.set_mask(name, language, torch.ones_like(codes[name], dtype=torch.bool))
    return extended
