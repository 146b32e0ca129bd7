"""What masks look like: densities, overlaps, active parameters, as plain data and as plots."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from icefall_pathways.pathways.masks import PathwayMasks


def density_per_parameter(masks: PathwayMasks) -> dict[str, dict[str, float]]:
    """The share of entries that each language keeps, by parameter and then by language."""
    return {
        name: {language: 1 - masks.sparsity(language, name) for language in masks.languages} for name in masks.names
    }


def overlap_matrix(masks: PathwayMasks) -> list[list[float]]:
    """Intersection over union of every two languages' masks, in the order of `masks.languages`."""
    return [[masks.overlap(a, b) for b in masks.languages] for a in masks.languages]


def overlap_per_parameter(masks: PathwayMasks) -> dict[str, float]:
    """Mean intersection over union of two languages' masks, by parameter: low where pathways part."""
    pairs = [(a, b) for i, a in enumerate(masks.languages) for b in masks.languages[i + 1 :]]
    if not pairs:
        return dict.fromkeys(masks.names, 1.0)
    return {name: sum(masks.only(name).overlap(a, b) for a, b in pairs) / len(pairs) for name in masks.names}


def active_parameters(model: nn.Module, masks: PathwayMasks | None, language: str) -> int:
    """How many parameters a language runs through: all that cannot be pruned, and those that its mask keeps."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if masks is None:
        return total
    prunable = sum(code.numel() for code in masks.codes.values())
    return total - prunable + round(prunable * (1 - masks.sparsity(language)))


def plot_density(masks: PathwayMasks, path: Path) -> None:
    """Per parameter, in the model's order: the density of each language and the mean overlap of two languages."""
    overlaps = overlap_per_parameter(masks)
    densities = density_per_parameter(masks)
    union = {name: masks.only(name).union_density() for name in masks.names}
    figure = Figure(figsize=(10, 2 + 0.16 * len(masks.names)), layout="constrained")
    axis = figure.subplots()
    rows = range(len(masks.names))
    for language in masks.languages:
        axis.plot([densities[name][language] for name in masks.names], rows, marker="|", linestyle="", label=language)
    axis.plot(list(union.values()), rows, marker="o", markersize=3, linestyle="", color="black", label="any language")
    axis.plot(list(overlaps.values()), rows, marker="x", markersize=3, linestyle="", color="grey", label="overlap")
    axis.set_yticks(rows, masks.names, fontsize=5)
    axis.invert_yaxis()
    axis.set(
        xlim=(0, 1.02), xlabel="density; overlap of two languages (intersection over union)", title="Density per layer"
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="upper right", fontsize=7)
    figure.savefig(path, dpi=110)


def plot_overlap(masks: PathwayMasks, path: Path) -> None:
    """The overlap matrix as a heat map with its values."""
    matrix = overlap_matrix(masks)
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
    places = range(len(masks.languages))
    axis.set_xticks(places, masks.languages)
    axis.set_yticks(places, masks.languages)
    for i in places:
        for j in places:
            axis.text(
                j, i, f"{matrix[i][j]:.2f}", ha="center", va="center", color="white" if matrix[i][j] < 0.6 else "black"
            )
    axis.set_title("Overlap of masks (intersection over union)")
    figure.colorbar(image)
    figure.savefig(path, dpi=110)
