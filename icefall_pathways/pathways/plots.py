"""Mask figures, and the colors and figure factory of all plots; the only module that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from icefall_pathways.pathways.analysis import DensityRow, density_per_parameter, rank_by_specificity
from icefall_pathways.pathways.masks import PathwayMasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "density_figure",
    "mask_figures",
    "new_figure",
    "overlap_figure",
    "plot_density",
    "plot_overlap",
    "plot_specificity",
]

#: Color-blind-safe palette (Okabe and Ito).
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#555555")
# A marker per color, for black-and-white prints.
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches, which does not require a display."""
    from matplotlib.figure import Figure  # not at import time: the command line does not need it

    return Figure(figsize=(width, height), layout="constrained")


def mask_figures(model: nn.Module, masks: PathwayMasks) -> "dict[str, Figure]":
    """Return the figures that show masks during training: density per layer, and overlap."""
    return {"density": density_figure(density_per_parameter(model, masks)), "overlap": overlap_figure(masks)}


def density_figure(rows: Sequence[DensityRow]) -> "Figure":
    """Plot the density of each language, the union and the mean overlap of every row.

    Args:
      rows: Rows of parameters, in the order of the model, or of module types.
    """
    languages = list(rows[0].density)
    figure = new_figure(10, 2 + 0.16 * len(rows))
    axis = figure.subplots()
    positions = range(len(rows))
    for i, language in enumerate(languages):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        # Markers of equal density would overlap: each language has its own height within the row.
        heights = [position + 0.6 * ((i + 0.5) / len(languages) - 0.5) for position in positions]
        densities = [row.density[language] for row in rows]
        axis.plot(densities, heights, color=color, marker=marker, markersize=3, linestyle="", label=language)
    unions = [row.union for row in rows]
    axis.plot(unions, positions, color="black", marker="|", markersize=7, linestyle="", label="any language")
    overlaps = [row.overlap for row in rows]
    axis.plot(overlaps, positions, color="black", marker="x", markersize=4, linestyle="", label="mean pairwise overlap")
    _label_rows(axis, rows)
    axis.set(xlim=(0, 1.02), xlabel="share of entries; overlap: intersection over union", title="Density per layer")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def plot_density(rows: Sequence[DensityRow], path: Path) -> None:
    """Write `density_figure` to `path`."""
    density_figure(rows).savefig(path, dpi=110)


def plot_specificity(rows: Sequence[DensityRow], path: Path) -> None:
    """Plot specificity and the share of entries that one language uses, in descending order of specificity.

    Args:
      rows: Rows of parameters, in any order.
      path: Image file to write.
    """
    ranked = rank_by_specificity(rows)
    figure = new_figure(10, 2 + 0.16 * len(ranked))
    axis = figure.subplots()
    positions = range(len(ranked))
    axis.barh(positions, [row.specificity for row in ranked], color=COLORS[0], height=0.7, label="specificity")
    exclusive = [row.exclusive for row in ranked]
    axis.plot(exclusive, positions, color="black", marker="D", markersize=3, linestyle="", label="one language only")
    _label_rows(axis, ranked)
    axis.set(
        xlim=(0, max(1.02, *(row.specificity for row in ranked))),
        xlabel="0: all languages use the same entries; 1: they agree no more than by chance",
        title="Language-specific layers",
    )
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def _label_rows(axis: "Axes", rows: Sequence[DensityRow]) -> None:
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=6)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def overlap_figure(masks: PathwayMasks) -> "Figure":
    """Plot the overlap matrix of all languages as an annotated heat map."""
    matrix = masks.overlaps()
    figure = new_figure(4.5, 4)
    axis = figure.subplots()
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
    positions = range(len(masks.languages))
    axis.set_xticks(positions, masks.languages)
    axis.set_yticks(positions, masks.languages)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axis.set_title("Overlap of masks (intersection over union)", fontsize=10)
    figure.colorbar(image)
    return figure


def plot_overlap(masks: PathwayMasks, path: Path) -> None:
    """Write `overlap_figure` to `path`."""
    overlap_figure(masks).savefig(path, dpi=110)
