"""Pruning criteria: the scores by which the entries of a language's mask are ranked.

A new criterion is one function and one line in `CRITERIA`. The options --prune-by and --regrow take their choices from
there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from icefall_pathways.pathways.gradients import LanguageGradients
from icefall_pathways.pathways.masks import PathwayMasks


@dataclass(frozen=True)
class ParameterStatistics:
    """The inputs of a criterion for one parameter and one language.

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
    """A way to rank entries.

    Attributes:
      score: Return the scores of a parameter's entries, of its shape; the largest are kept.
      needs_gradients: The score uses gradients. Before the first batch of a language, magnitudes replace it.
      only_regrows: The criterion selects entries to regrow (--regrow), not entries to keep (--prune-by).
    """

    score: Callable[[ParameterStatistics], Tensor]
    needs_gradients: bool = True
    only_regrows: bool = False


def magnitude(statistics: ParameterStatistics) -> Tensor:
    """Return |w|."""
    return statistics.magnitude


def gradient(statistics: ParameterStatistics) -> Tensor:
    """Return rms(g): entries through which the language's loss falls fastest (RigL, Evci et al. 2020)."""
    return statistics.gradient_rms


def sensitivity(statistics: ParameterStatistics) -> Tensor:
    """Return |w| rms(g), which ranks as the saliency of Optimal Brain Damage does (LeCun et al. 1989).

    The saliency is w^2 E[g^2] / 2, with the empirical Fisher information for the curvature.
    """
    return statistics.magnitude * statistics.gradient_rms


#: The criteria by the names that options use.
CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude, needs_gradients=False),
    "gradient": Criterion(gradient, only_regrows=True),
    "sensitivity": Criterion(sensitivity),
}

# Choices of options: a type checker cannot read a table, and sees any text.
if TYPE_CHECKING:
    PruneCriterion = str
    RegrowCriterion = str
else:
    PruneCriterion = Literal[tuple(name for name, criterion in CRITERIA.items() if not criterion.only_regrows)]
    RegrowCriterion = Literal[tuple(CRITERIA)]


def get_criterion(name: str) -> Criterion:
    """Return the criterion of a name.

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
      masks: They name the parameters to score.
      languages: The languages whose gradients count.
      gradients: Without them, or before the first batch of these languages, magnitudes are the scores.

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
