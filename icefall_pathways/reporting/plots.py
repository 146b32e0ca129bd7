"""Pictures of training and of results."""

from collections import defaultdict
from pathlib import Path

from icefall_pathways.pathways.plots import COLORS, new_figure
from icefall_pathways.reporting.results import SystemResult


def plot_training_curves(result: SystemResult, path: Path) -> None:
    """Training and validation loss per token against updates, a line per language."""
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
    """Word error rate by system and language, as grouped bars with their values."""
    figure = new_figure(10, 4)
    axis = figure.subplots()
    groups = [*results[0].wer, "average"]
    width = 0.8 / len(results)
    for i, (result, color) in enumerate(zip(results, COLORS, strict=False)):
        heights = [*result.wer.values(), result.average_wer]
        places = [group + (i - (len(results) - 1) / 2) * width for group in range(len(groups))]
        bars = axis.bar(places, heights, width, label=result.name, color=color)
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel="word error rate (%)", title="Word error rate by system and language")
    axis.legend()
    figure.savefig(path, dpi=110)


def plot_sweep(curves: dict[str, dict[float, dict[int, float]]], path: Path) -> None:
    """Average word error rate against sparsity: a line per system through its means, a point per seed.

    Lines go through the means of the seeds that every sparsity has been run with, so that they show what sparsity does
    and not what other seeds do; the points of other seeds are hollow.

    Args:
      curves: By system, sparsity and seed, the error rates; a system with one sparsity only, 0, is drawn as a level
        line.
      path: The PNG file.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    common = common_seeds(curves)
    for (name, points), color in zip(curves.items(), COLORS, strict=False):
        shared = {place: [wer for seed, wer in runs.items() if seed in common] for place, runs in points.items()}
        means = {place: sum(values) / len(values) for place, values in sorted(shared.items()) if values}
        if points.keys() == {0.0}:
            axis.axhline(means[0.0], label=name, color=color, linestyle="--")
            continue
        axis.plot([100 * place for place in means], list(means.values()), label=name, color=color)
        for place, runs in points.items():
            for seed, wer in runs.items():
                face = color if seed in common else "none"
                axis.plot(100 * place, wer, color=color, marker="o", markersize=4, markerfacecolor=face)
    axis.set(xlabel="sparsity (%)", ylabel="average word error rate (%)")
    axis.set_title(
        f"lines: mean of seed {', '.join(map(str, sorted(common)))}; hollow points: other seeds", fontsize="small"
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110, format="png")


def common_seeds(curves: dict[str, dict[float, dict[int, float]]]) -> set[int]:
    """The seeds that every system has at each of its sparsities; all seeds if there is none."""
    seeds = [set(runs) for points in curves.values() for runs in points.values()]
    return set.intersection(*seeds) or set.union(*seeds)
