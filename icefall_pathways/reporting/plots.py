"""Pictures of training and of results."""

from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from icefall_pathways.reporting.results import SystemResult

# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def plot_training_curves(result: SystemResult, path: Path) -> None:
    """Training and validation loss per token against updates, a line per language."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(axes, ("train", "valid"), ("training", "validation"), strict=True):
        curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for record in result.metrics:
            if record["kind"] == kind:
                curves[record["language"]][0].append(record["update"])
                curves[record["language"]][1].append(record["loss"])
        for colour, (language, (updates, losses)) in zip(COLOURS, sorted(curves.items()), strict=False):
            axis.plot(updates, losses, label=language, color=colour, marker="o" if kind == "valid" else None)
        axis.set(title=f"{result.name}: {title}", xlabel="update", ylabel="loss per token")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def plot_wer(results: list[SystemResult], path: Path) -> None:
    """Word error rate by system and language, as grouped bars with their values."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axis = figure.subplots()
    groups = [*results[0].wer, "average"]
    width = 0.8 / len(results)
    for i, (result, colour) in enumerate(zip(results, COLOURS, strict=False)):
        heights = [*result.wer.values(), result.average_wer]
        places = [group + (i - (len(results) - 1) / 2) * width for group in range(len(groups))]
        bars = axis.bar(places, heights, width, label=result.name, color=colour)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel="word error rate (%)", title="Word error rate by system and language")
    axis.legend()
    figure.savefig(path, dpi=110)


def plot_sweep(curves: dict[str, dict[float, list[float]]], path: Path) -> None:
    """Average word error rate against sparsity: a line per system through its means, a point per seed.

    Args:
      curves: By system and sparsity, the error rates of its seeds; a system with one sparsity only, 0, is drawn as a
        level line.
      path: The PNG file.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        sparsities = sorted(values)
        means = [sum(values[sparsity]) / len(values[sparsity]) for sparsity in sparsities]
        if sparsities == [0.0]:
            axis.axhline(means[0], label=name, color=colour, linestyle="--")
            continue
        axis.plot([100 * sparsity for sparsity in sparsities], means, label=name, color=colour)
        for sparsity in sparsities:
            places = [100 * sparsity] * len(values[sparsity])
            axis.plot(places, values[sparsity], color=colour, marker="o", linestyle="", markersize=4)
    axis.set(xlabel="sparsity (%)", ylabel="average word error rate (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110, format="png")
