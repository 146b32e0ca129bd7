"""What masks look like: densities, overlaps, active parameters."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from icefall_pathways.pathways.counting import sharing_counts
from icefall_pathways.pathways.masks import PathwayMasks


@dataclass(frozen=True)
class DensityRow:
    """The masks of one parameter, or of all parameters of one type of module.

    Attributes:
      name: The parameter, or the type.
      module_type: Class of the module that the parameter belongs to, such as "Linear".
      num_entries: Prunable entries.
      density: Share of them that each language uses.
      union: Share that at least one language uses.
      overlap: Mean intersection over union of two languages' masks: low where pathways part.
      exclusive: Share of the used entries that one language alone uses.
      specificity: 1 less the mean of Cohen's kappa of two languages' masks: 0 where they are the same, 1 where they
        have no more in common than random masks of their densities. Unlike `overlap` it can be compared between layers
        of different density.
    """

    name: str
    module_type: str
    num_entries: int
    density: dict[str, float]
    union: float
    overlap: float
    exclusive: float
    specificity: float


def density_per_parameter(model: nn.Module, masks: PathwayMasks) -> list[DensityRow]:
    """A row per parameter, in the model's order."""
    return [_row(name, _module_type(model, name), masks.subset(name)) for name in masks.names]


def density_per_type(model: nn.Module, masks: PathwayMasks) -> list[DensityRow]:
    """A row per type of module."""
    names = defaultdict(list)
    for name in masks.names:
        names[_module_type(model, name)].append(name)
    return [_row(kind, kind, masks.subset(*members)) for kind, members in names.items()]


def rank_by_specificity(rows: Sequence[DensityRow]) -> list[DensityRow]:
    """The rows from the most language-specific on: where languages go ways of their own."""
    return sorted(rows, key=lambda row: -row.specificity)


def overlap_matrix(masks: PathwayMasks) -> list[list[float]]:
    """Intersection over union of every two languages' masks, in the order of `masks.languages`."""
    return masks.overlaps()


def mean_overlap(masks: PathwayMasks) -> float:
    """Mean intersection over union of two languages' masks; 1 for a single language."""
    return _mean_of_pairs(masks.overlaps())


def active_parameters(model: nn.Module, masks: PathwayMasks | None, language: str) -> int:
    """How many parameters a language runs through: all that cannot be pruned, and those that its mask keeps."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if masks is None:
        return total
    return total - sum(int((~masks.mask(name, language)).sum()) for name in masks.names)


def _row(name: str, module_type: str, masks: PathwayMasks) -> DensityRow:
    sharing = sharing_counts(masks.codes.values(), len(masks.languages)).tolist()
    entries = sum(sharing)
    used = entries - sharing[0]
    joint = (masks.counts().double() / entries).tolist()
    return DensityRow(
        name=name,
        module_type=module_type,
        num_entries=entries,
        density={language: joint[i][i] for i, language in enumerate(masks.languages)},
        union=used / entries,
        overlap=mean_overlap(masks),
        exclusive=sharing[1] / used if used else 0.0,
        specificity=1 - _mean_of_pairs(_kappas(joint)),
    )


def _kappas(joint: list[list[float]]) -> list[list[float]]:
    """Cohen's kappa of every two masks, from the shares of entries that both use: agreement beyond that by chance."""
    own = [row[i] for i, row in enumerate(joint)]

    def kappa(i: int, j: int) -> float:
        agreement = 1 - own[i] - own[j] + 2 * joint[i][j]
        by_chance = own[i] * own[j] + (1 - own[i]) * (1 - own[j])
        return (agreement - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0

    return [[kappa(i, j) for j in range(len(own))] for i in range(len(own))]


def _mean_of_pairs(matrix: list[list[float]]) -> float:
    """The mean above the diagonal; 1 if there is nothing above it."""
    values = [matrix[i][j] for i, j in combinations(range(len(matrix)), 2)]
    return sum(values) / len(values) if values else 1.0


def _module_type(model: nn.Module, parameter_name: str) -> str:
    return type(model.get_submodule(parameter_name.rpartition(".")[0])).__name__
