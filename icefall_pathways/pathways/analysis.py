"""Mask statistics: densities, overlaps, active parameters."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from icefall_pathways.pathways.counting import sharing_counts
from icefall_pathways.pathways.masks import PathwayMasks


@dataclass(frozen=True)
class DensityRow:
    """Statistics of the masks of one parameter, or of all parameters of one module type.

    Attributes:
      name: The parameter, or the module type.
      module_type: Class of the module that owns the parameter, e.g. "Linear".
      num_entries: Number of prunable entries.
      density: Share of the entries that each language uses.
      union: Share of the entries that at least one language uses.
      overlap: Mean intersection over union of pairs of masks.
      exclusive: Share of the used entries that exactly one language uses.
      specificity: 1 minus the mean of Cohen's kappa over pairs of masks: 0 if all masks are equal, 1 if they agree no
        more than random masks of the same densities. Unlike `overlap`, it is comparable across layers of different
        density.
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
    """Return one row per parameter, in model order."""
    return [_row(name, _module_type(model, name), masks.subset(name)) for name in masks.names]


def density_per_type(model: nn.Module, masks: PathwayMasks) -> list[DensityRow]:
    """Return one row per module type."""
    names = defaultdict(list)
    for name in masks.names:
        names[_module_type(model, name)].append(name)
    return [_row(kind, kind, masks.subset(*members)) for kind, members in names.items()]


def rank_by_specificity(rows: Sequence[DensityRow]) -> list[DensityRow]:
    """Return the rows in descending order of specificity."""
    return sorted(rows, key=lambda row: -row.specificity)


def mean_overlap(masks: PathwayMasks) -> float:
    """Return the mean intersection over union over pairs of languages; 1 for a single language."""
    return _mean_of_pairs(masks.overlaps())


def active_parameters(model: nn.Module, masks: PathwayMasks | None, language: str) -> int:
    """Count the parameters that a language uses: all that cannot be pruned, and those in its mask."""
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
    """Return Cohen's kappa of each pair of masks, from the shares of entries that both use."""
    density = [row[i] for i, row in enumerate(joint)]

    def kappa(i: int, j: int) -> float:
        agreement = 1 - density[i] - density[j] + 2 * joint[i][j]
        by_chance = density[i] * density[j] + (1 - density[i]) * (1 - density[j])
        return (agreement - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0

    return [[kappa(i, j) for j in range(len(density))] for i in range(len(density))]


def _mean_of_pairs(matrix: list[list[float]]) -> float:
    """Return the mean of the values above the diagonal; 1 for a single row."""
    values = [matrix[i][j] for i, j in combinations(range(len(matrix)), 2)]
    return sum(values) / len(values) if values else 1.0


def _module_type(model: nn.Module, parameter_name: str) -> str:
    return type(model.get_submodule(parameter_name.rpartition(".")[0])).__name__
