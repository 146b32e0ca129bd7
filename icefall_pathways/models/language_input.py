"""Language as an input of the encoder: a learned vector per language, added after subsampling."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

_PREFIX = "vector_"
_INITIAL_STD = 0.02  # not zero, since ScaledAdam changes a tensor in proportion to its size


class LanguageLinear(nn.Linear):
    """A linear layer with a learned vector per language, which is added to its bias while the language is active.

    It implements `pathways.language_parameters.LanguageDependent`: without an active language, no vector is added.

    Args:
      linear: The layer whose weight and bias are used.
      languages: The languages with a vector.
    """

    language_attributes = ("bias",)

    def __init__(self, linear: nn.Linear, languages: Iterable[str]) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = linear.weight, linear.bias
        for language in sorted(languages):  # packages concatenate parameters in this order, without names
            vector = nn.Parameter(self.bias.new_empty(self.out_features).normal_(std=_INITIAL_STD))
            self.register_parameter(_PREFIX + language, vector)

    def language_values(self, language: str) -> dict[str, Tensor]:
        """Return the bias of a language.

        Raises:
          ValueError: The layer has no vector of the language.
        """
        vector = self._parameters.get(_PREFIX + language)
        if vector is None:
            languages = ", ".join(self.language_of_parameters().values())
            raise ValueError(
                f"the model has the language as an input, and no vector of {language!r}: it has those of {languages}: "
                "use one of these, or add the language with train.py --languages and --freeze-languages"
            )
        bias = self._parameters["bias"]
        assert bias is not None
        return {"bias": bias + vector}

    def language_of_parameters(self) -> dict[str, str]:
        """Return the languages of the vectors, by the names of the parameters."""
        names = (name for name in self._parameters if name.startswith(_PREFIX))
        return {name: name.removeprefix(_PREFIX) for name in names}


def add_language_input(encoder_embed: nn.Module, languages: Sequence[str]) -> None:
    """Add a vector per language to the output of the last linear layer of the subsampling module, `out`.

    Raises:
      ValueError: There are no languages, or the module has no such layer.
    """
    out = getattr(encoder_embed, "out", None)
    if not isinstance(out, nn.Linear) or out.bias is None:
        raise ValueError(
            f"--language-input 1 adds vectors to the linear layer `out` of the subsampling module, which "
            f"{type(encoder_embed).__name__} does not have: use --language-input 0"
        )
    if not languages:
        raise ValueError("--language-input 1 needs the languages of the model, and none is given")
    encoder_embed.out = LanguageLinear(out, languages)


def language_of_vector(name: str) -> str | None:
    """Return the language of a vector by the name of its parameter in a model; None for other parameters."""
    attribute = name.rpartition(".")[2]
    return attribute.removeprefix(_PREFIX) if attribute.startswith(_PREFIX) else None


def languages_of_vectors(names: Iterable[str]) -> list[str]:
    """Return the languages that have a vector among parameters of these names, in their order."""
    languages = map(language_of_vector, names)
    return [language for language in languages if language is not None]
