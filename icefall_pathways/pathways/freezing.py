"""Training some languages without changing what the others compute."""

from collections.abc import Sequence

from torch import nn

from icefall_pathways.pathways.masks import MasksError, PathwayMasks


def freeze_languages(model: nn.Module, masks: PathwayMasks, frozen: Sequence[str]) -> PathwayMasks:
    """Freeze everything that the languages in `frozen` compute with.

    Parameters without masks (biases, norms, embeddings, the joiner) are every language's: they stop requiring
    gradients. Of the others, an optimizer may change the entries that no frozen language uses. The forward pass goes on
    with `masks`, so that the other languages read what is frozen.

    Args:
      model: Its parameters without masks are changed to require no gradient.
      masks: The sub-networks; not changed. They must stay as they are while training goes on.
      frozen: Languages whose output must stay what it is.

    Returns:
      The masks to activate the optimizer with: each language's entries without those of the frozen ones.

    Raises:
      MasksError: The masks do not know a language, or leave another one nothing to train.
      ValueError: The model has statistics of batches, which training changes for all languages.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            raise ValueError(
                f"{name} ({type(module).__name__}) gathers statistics of batches, which change the output of every "
                "language: languages cannot be frozen in this model"
            )
    trainable = masks.excluding(frozen)
    others = [language for language in masks.languages if language not in frozen]
    empty = [language for language in others if trainable.sparsity(language) == 1]
    if empty or not others:
        raise MasksError(
            f"nothing is left to train for {', '.join(empty or ['any language'])}: every entry is used by "
            f"{', '.join(frozen)}, which are frozen. Freeze fewer languages, or find masks of lower sparsity"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in masks.codes)
    return trainable
