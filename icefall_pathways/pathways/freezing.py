"""Freeze languages: train others without changing the output of the frozen ones."""

from collections.abc import Sequence

from torch import nn

from icefall_pathways.pathways.masks import MasksError, PathwayMasks


def freeze_languages(model: nn.Module, masks: PathwayMasks, frozen: Sequence[str]) -> PathwayMasks:
    """Freeze all weights that the languages in `frozen` use.

    All languages share the parameters without masks (biases, norms, embeddings, the joiner), so these stop requiring
    gradients. Of the masked parameters, the optimizer may change the entries that no frozen language uses. The forward
    pass still uses `masks`, so the other languages read the frozen entries of their masks.

    Args:
      model: The model; its parameters without masks are set to `requires_grad = False`.
      masks: The sub-networks; not changed. They must not change during training either.
      frozen: The languages whose output must not change.

    Returns:
      The masks for `optimizer.activate`: each language's entries except those of the frozen languages.

    Raises:
      MasksError: The masks lack a language, or nothing is left to train for another one.
      ValueError: The model has batch statistics, which training changes for all languages.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise ValueError(
                f"{name} ({type(module).__name__}) tracks batch statistics, which change the output of every language: "
                "languages cannot be frozen in this model"
            )
    trainable = masks.excluding(frozen)
    others = [language for language in masks.languages if language not in frozen]
    empty = [language for language in others if trainable.sparsity(language) == 1]
    if empty or not others:
        raise MasksError(
            f"nothing is left to train for {', '.join(empty or ['any language'])}: the frozen languages "
            f"{', '.join(frozen)} use every entry. Freeze fewer languages, or give the other languages "
            "masks of lower sparsity"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in masks.codes)
    return trainable
