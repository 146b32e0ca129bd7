"""What masks look like: densities, overlaps, active parameters, as plain data and as plots."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

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
    """

    name: str
    module_type: str
    num_entries: int
    density: dict[str, float]
    union: float
    overlap: float


def density_per_parameter(model: nn.Module, masks: PathwayMasks) -> list[DensityRow]:
    """A row per parameter, in the model's order."""
    return [_row(name, _module_type(model, name), masks.only(name)) for name in masks.names]


def density_per_type(model: nn.Module, masks: PathwayMasks) -> list[DensityRow]:
    """A row per type of module."""
    names = defaultdict(list)
    for name in masks.names:
        names[_module_type(model, name)].append(name)
    return [_row(kind, kind, masks.only(*members)) for kind, members in names.items()]


def overlap_matrix(masks: PathwayMasks) -> list[list[float]]:
    """Intersection over union of every two languages' masks, in the order of `masks.languages`."""
    return [[masks.overlap(a, b) for b in masks.languages] for a in masks.languages]


def mean_overlap(masks: PathwayMasks) -> float:
    """Mean intersection over union of two languages' masks; 1 for a single language."""
    values = [masks.overlap(a, b) for a, b in combinations(masks.languages, 2)]
    return sum(values) / len(values) if values else 1.0


def active_parameters(model: nn.Module, masks: PathwayMasks | None, language: str) -> int:
    """How many parameters a language runs through: all that cannot be pruned, and those that its mask keeps."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if masks is None:
        return total
    return total - sum(int((~masks.mask(name, language)).sum()) for name in masks.names)


def plot_density(masks: PathwayMasks, path: Path) -> None:
    """Per parameter, in the model's order: the density of each language, of their union, and the mean overlap.

    Args:
      masks: The sub-networks of all languages.
      path: Picture to write.
    """
    figure = Figure(figsize=(10, 2 + 0.16 * len(masks.names)), layout="constrained")
    axis = figure.subplots()
    parts = [masks.only(name) for name in masks.names]
    rows = range(len(parts))
    for i, language in enumerate(masks.languages):
        colour, marker = _STYLES[i % len(_STYLES)]
        # Languages of equal density would hide each other: each has its own height within the row.
        heights = [row + 0.6 * ((i + 0.5) / len(masks.languages) - 0.5) for row in rows]
        densities = [1 - part.sparsity(language) for part in parts]
        axis.plot(densities, heights, color=colour, marker=marker, markersize=3, linestyle="", label=language)
    unions = [part.union_density() for part in parts]
    axis.plot(unions, rows, color="black", marker="|", markersize=7, linestyle="", label="any language")
    overlaps = [mean_overlap(part) for part in parts]
    axis.plot(overlaps, rows, color="black", marker="x", markersize=4, linestyle="", label="overlap of two")
    axis.set_yticks(rows, masks.names, fontsize=6)
    axis.set_ylim(len(parts) - 0.5, -0.5)
    axis.set(xlim=(0, 1.02), xlabel="share of entries; overlap: intersection over union", title="Density per layer")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def plot_overlap(masks: PathwayMasks, path: Path) -> None:
    """The overlap matrix as a heat map with its values.

    Args:
      masks: The sub-networks of all languages.
      path: Picture to write.
    """
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
    figure.savefig(path, dpi=110)


def _row(name: str, module_type: str, masks: PathwayMasks) -> DensityRow:
    return DensityRow(
        name=name,
        module_type=module_type,
        num_entries=sum(code.numel() for code in masks.codes.values()),
        density={language: 1 - masks.sparsity(language) for language in masks.languages},
        union=masks.union_density(),
        overlap=mean_overlap(masks),
    )


def _module_type(model: nn.Module, parameter_name: str) -> str:
    return type(model.get_submodule(parameter_name.rpartition(".")[0])).__name__
