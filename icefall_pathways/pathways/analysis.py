"""What masks look like: densities, overlaps, active parameters, as plain data and as plots."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from icefall_pathways.pathways.counting import sharing_counts
from icefall_pathways.pathways.masks import PathwayMasks

# Colours that stay apart for colour-blind readers (Okabe and Ito), with a marker each for readers in black and white.
_STYLES = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#56B4E9", "D"),
    ("#D55E00", "P"),
    ("#F0E442", "X"),
    ("#555555", "*"),
)


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
    return [_row(name, _module_type(model, name), masks.only(name)) for name in masks.names]


def density_per_type(model: nn.Module, masks: PathwayMasks) -> list[DensityRow]:
    """A row per type of module."""
    names = defaultdict(list)
    for name in masks.names:
        names[_module_type(model, name)].append(name)
    return [_row(kind, kind, masks.only(*members)) for kind, members in names.items()]


def most_specific(rows: Sequence[DensityRow]) -> list[DensityRow]:
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


def mask_figures(model: nn.Module, masks: PathwayMasks) -> dict[str, Figure]:
    """What shows masks while they change: their density per layer, and how far they overlap."""
    return {"density": density_figure(density_per_parameter(model, masks)), "overlap": overlap_figure(masks)}


def density_figure(rows: Sequence[DensityRow]) -> Figure:
    """Per row: the density of each language, of their union, and the mean overlap.

    Args:
      rows: Of parameters, in the model's order, or of types.
    """
    languages = list(rows[0].density)
    figure = Figure(figsize=(10, 2 + 0.16 * len(rows)), layout="constrained")
    axis = figure.subplots()
    places = range(len(rows))
    for i, language in enumerate(languages):
        colour, marker = _STYLES[i % len(_STYLES)]
        # Languages of equal density would hide each other: each has its own height within the row.
        heights = [place + 0.6 * ((i + 0.5) / len(languages) - 0.5) for place in places]
        densities = [row.density[language] for row in rows]
        axis.plot(densities, heights, color=colour, marker=marker, markersize=3, linestyle="", label=language)
    unions = [row.union for row in rows]
    axis.plot(unions, places, color="black", marker="|", markersize=7, linestyle="", label="any language")
    overlaps = [row.overlap for row in rows]
    axis.plot(overlaps, places, color="black", marker="x", markersize=4, linestyle="", label="overlap of two")
    _name_rows(axis, rows)
    axis.set(xlim=(0, 1.02), xlabel="share of entries; overlap: intersection over union", title="Density per layer")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def plot_density(rows: Sequence[DensityRow], path: Path) -> None:
    """Write `density_figure` to `path`."""
    density_figure(rows).savefig(path, dpi=110)


def plot_specificity(rows: Sequence[DensityRow], path: Path) -> None:
    """Per row, from the most language-specific on: the specificity, and the share of entries of one language alone.

    Args:
      rows: Of parameters, in any order.
      path: Picture to write.
    """
    ranked = most_specific(rows)
    figure = Figure(figsize=(10, 2 + 0.16 * len(ranked)), layout="constrained")
    axis = figure.subplots()
    places = range(len(ranked))
    axis.barh(places, [row.specificity for row in ranked], color=_STYLES[0][0], height=0.7, label="specificity")
    exclusive = [row.exclusive for row in ranked]
    axis.plot(exclusive, places, color="black", marker="D", markersize=3, linestyle="", label="used by one alone")
    _name_rows(axis, ranked)
    axis.set(
        xlim=(0, max(1.02, *(row.specificity for row in ranked))),
        xlabel="0: languages use the same entries; 1: they have no more in common than by chance",
        title="Language-specific layers",
    )
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def _name_rows(axis: Axes, rows: Sequence[DensityRow]) -> None:
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=6)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def overlap_figure(masks: PathwayMasks) -> Figure:
    """The overlap matrix of the sub-networks of all languages as a heat map with its values."""
    matrix = overlap_matrix(masks)
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
    places = range(len(masks.languages))
    axis.set_xticks(places, masks.languages)
    axis.set_yticks(places, masks.languages)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axis.set_title("Overlap of masks (intersection over union)", fontsize=10)
    figure.colorbar(image)
    return figure


def plot_overlap(masks: PathwayMasks, path: Path) -> None:
    """Write `overlap_figure` to `path`."""
    overlap_figure(masks).savefig(path, dpi=110)


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
