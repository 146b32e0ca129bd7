"""What decides which entries a language uses."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks

#: What entries are ranked by, for one language l: the magnitude of the shared weight, |w|; the magnitude of l's
#: gradient (root mean square over l's recent batches), rms(g_l); or how much l's loss feels the entry, |w| rms(g_l).
Criterion = Literal["magnitude", "gradient", "sensitivity"]


def scores(
    criterion: Criterion,
    model: nn.Module,
    masks: PathwayMasks,
    languages: Sequence[str],
    gradients: LanguageGradients | None,
) -> dict[str, Tensor]:
    """How high each entry ranks for `languages`, by parameter name.

    Args:
      criterion: See there.
      model: Whose weights count.
      masks: Their names are those of the parameters to rank.
      languages: Whose gradients count.
      gradients: Without them, or before the first batch of these languages, magnitudes decide.

    Returns:
      Tensors of the parameters' shapes.
    """
    parameters = dict(model.named_parameters())
    magnitudes = {name: parameters[name].detach().abs() for name in masks.names}
    if criterion == "magnitude" or gradients is None:
        return magnitudes
    squares = gradients.mean_square(languages)
    if not squares:  # no batch of these languages yet: nothing is known but the weights
        return magnitudes
    if criterion == "gradient":
        return {name: squares[name].sqrt() for name in masks.names}
    return {name: score * squares[name].sqrt() for name, score in magnitudes.items()}
