"""Plots of training curves and error rates."""

from collections import defaultdict
from itertools import cycle
from pathlib import Path

from icefall_pathways.pathways.plots import COLORS, MARKERS, new_figure
from icefall_pathways.reporting.results import SystemResult


def plot_training_curves(result: SystemResult, path: Path) -> None:
    """Plot training and validation loss per token over updates, one line per language."""
    figure = new_figure(10, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(axes, ("train", "valid"), ("training", "validation"), strict=True):
        curves: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for record in result.metrics:
            if record["kind"] == kind:
                curves[record["language"]][0].append(record["update"])
                curves[record["language"]][1].append(record["loss"])
        for color, (language, (updates, losses)) in zip(COLORS, sorted(curves.items()), strict=False):
            axis.plot(updates, losses, label=language, color=color, marker="o" if kind == "valid" else None)
        axis.set(title=f"{result.name}: {title}", xlabel="update", ylabel="loss per token")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def plot_wer(results: list[SystemResult], path: Path) -> None:
    """Plot word error rates by system and language as grouped bars with their values."""
    figure = new_figure(10, 4)
    axis = figure.subplots()
    groups = [*results[0].wer, "average"]
    width = 0.8 / len(results)
    for i, (result, color) in enumerate(zip(results, cycle(COLORS), strict=False)):
        heights = [*result.wer.values(), result.average_wer]
        positions = [group + (i - (len(results) - 1) / 2) * width for group in range(len(groups))]
        bars = axis.bar(positions, heights, width, label=result.name, color=color)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel="word error rate (%)", title="Word error rate by system and language")
    axis.legend()
    figure.savefig(path, dpi=110)


def plot_systems(averages: dict[str, dict[int, float]], path: Path) -> None:
    """Plot average word error rates by system as horizontal bars: the mean with its value, and a marker per seed.

    Args:
      averages: Word error rates by system and seed.
      path: PNG file.
    """
    figure = new_figure(8, 1 + 0.45 * len(averages))
    axis = figure.subplots()
    means = [sum(runs.values()) / len(runs) for runs in averages.values()]
    bars = axis.barh(list(averages), means, color=COLORS[0], alpha=0.4)
    axis.bar_label(bars, fmt="%.1f", label_type="center")
    seeds = sorted({seed for runs in averages.values() for seed in runs})
    for seed, marker in zip(seeds, cycle(MARKERS), strict=False):
        points = {name: runs[seed] for name, runs in averages.items() if seed in runs}
        averages_of_seed, systems = list(points.values()), list(points)
        axis.plot(averages_of_seed, systems, label=f"seed {seed}", color="black", marker=marker, linestyle="none")
    axis.invert_yaxis()  # the order of the tables
    axis.set(xlabel="average word error rate (%)", xlim=(0, None))
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside upper right", ncols=min(len(seeds), 6))
    figure.savefig(path, dpi=110, format="png")


def plot_sweep(curves: dict[str, dict[float, dict[int, float]]], path: Path) -> None:
    """Plot average word error rates over sparsity: one line of means per system, and one point per seed.

    Means are over the seeds that are available at every sparsity, so that lines show the effect of sparsity and not of
    seeds. Points of other seeds are hollow.

    Args:
      curves: Word error rates by system, sparsity and seed; a system with the single sparsity 0 is drawn as a
        horizontal line.
      path: PNG file.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    common = common_seeds(curves)
    for (name, points), color in zip(curves.items(), cycle(COLORS), strict=False):
        shared = {sparsity: [wer for seed, wer in runs.items() if seed in common] for sparsity, runs in points.items()}
        means = {sparsity: sum(values) / len(values) for sparsity, values in sorted(shared.items()) if values}
        if points.keys() == {0.0}:
            axis.axhline(means[0.0], label=name, color=color, linestyle="--")
            continue
        axis.plot([100 * sparsity for sparsity in means], list(means.values()), label=name, color=color)
        for sparsity, runs in points.items():
            for seed, wer in runs.items():
                face = color if seed in common else "none"
                axis.plot(100 * sparsity, wer, color=color, marker="o", markersize=4, markerfacecolor=face)
    axis.set(xlabel="sparsity (%)", ylabel="average word error rate (%)")
    axis.set_title(
        f"lines: mean of seed {', '.join(map(str, sorted(common)))}; hollow points: other seeds", fontsize="small"
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110, format="png")


def common_seeds(curves: dict[str, dict[float, dict[int, float]]]) -> set[int]:
    """Return the seeds that every system has at each of its sparsities; if there are none, return all seeds."""
    seeds = [set(runs) for points in curves.values() for runs in points.values()]
    return set.intersection(*seeds) or set.union(*seeds)
