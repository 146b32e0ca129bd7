"""Pruning criteria: the scores by which the entries of a language's mask are ranked.

A new criterion is one function and one line in `CRITERIA`, from which the options --prune-by and --regrow take their
choices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks


@dataclass(frozen=True)
class ParameterStatistics:
    """Inputs of a criterion for one parameter and one language.

    Attributes:
      magnitude: |w| of the shared weights, of the parameter's shape.
      mean_square: Running mean of the language's squared gradient, E[g^2], up to a factor that is the same for all
        parameters; None for criteria that need no gradients.
    """

    magnitude: Tensor
    mean_square: Tensor | None = None

    @property
    def gradient_rms(self) -> Tensor:
        """Root mean square of the language's gradient, rms(g)."""
        assert self.mean_square is not None, "declare the criterion with needs_gradients=True"
        return self.mean_square.sqrt()


@dataclass(frozen=True)
class Criterion:
    """A pruning criterion.

    Attributes:
      score: Returns the scores of a parameter's entries, of its shape; entries with the largest scores are kept.
      needs_gradients: Whether the score uses gradients. Before the first batch of a language, magnitudes replace it.
      only_regrows: Whether the criterion can only select entries to regrow (--regrow), not to keep (--prune-by).
    """

    score: Callable[[ParameterStatistics], Tensor]
    needs_gradients: bool = True
    only_regrows: bool = False


def magnitude(statistics: ParameterStatistics) -> Tensor:
    """Return |w|."""
    return statistics.magnitude


def gradient(statistics: ParameterStatistics) -> Tensor:
    """Return rms(g), which is largest where a change reduces the language's loss most (RigL, Evci et al. 2020)."""
    return statistics.gradient_rms


def sensitivity(statistics: ParameterStatistics) -> Tensor:
    """Return |w| rms(g), which ranks entries as the saliency of Optimal Brain Damage does (LeCun et al. 1989).

    The saliency is w^2 E[g^2] / 2, where the empirical Fisher information approximates the curvature.
    """
    return statistics.magnitude * statistics.gradient_rms


#: Criteria by option value.
CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude, needs_gradients=False),
    "gradient": Criterion(gradient, only_regrows=True),
    "sensitivity": Criterion(sensitivity),
}

# Choices of the options. Type checkers cannot evaluate a table, so for them the choices are any string.
if TYPE_CHECKING:
    PruneCriterion = str
    RegrowCriterion = str
else:
    PruneCriterion = Literal[tuple(name for name, criterion in CRITERIA.items() if not criterion.only_regrows)]
    RegrowCriterion = Literal[tuple(CRITERIA)]


def get_criterion(name: str) -> Criterion:
    """Return the criterion with this name.

    Raises:
      ValueError: `CRITERIA` has no such name.
    """
    if name not in CRITERIA:
        raise ValueError(f"unknown criterion {name!r}: expected one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


def criterion_scores(
    name: str,
    model: nn.Module,
    masks: PathwayMasks,
    languages: Sequence[str],
    gradients: LanguageGradients | None,
) -> dict[str, Tensor]:
    """Return the scores of all entries for `languages`, by parameter name.

    Args:
      name: A criterion of `CRITERIA`.
      model: The model whose weights are scored.
      masks: Masks of the parameters to score.
      languages: The languages whose gradients are used.
      gradients: Gradient statistics. If they are None or have no batch of these languages yet, scores are magnitudes.

    Returns:
      Tensors of the parameters' shapes.

    Raises:
      ValueError: `CRITERIA` has no such name.
    """
    criterion = get_criterion(name)
    parameters = dict(model.named_parameters())
    magnitudes = {name: parameters[name].detach().abs() for name in masks.names}
    squares = gradients.mean_square(languages) if gradients is not None and criterion.needs_gradients else {}
    if criterion.needs_gradients and not squares:
        return magnitudes
    return {name: criterion.score(ParameterStatistics(magnitudes[name], squares.get(name))) for name in masks.names}
