"""Results of experiments, read from their folders and formatted as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.result_summary import read_summary
from icefall_pathways.languages import scored_by_characters
from icefall_pathways.pathways import analysis
from icefall_pathways.pathways.analysis import DensityRow
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.reporting.costs import TITLES, Costs, read_costs
from icefall_pathways.reporting.systems import SYSTEMS
from icefall_pathways.training.metrics import read_metrics

_HEADER_WIDTH = 22  # characters of a line in the header of a table


@dataclass(frozen=True)
class SystemResult:
    """One trained and decoded system.

    Attributes:
      name: Name in the table.
      wer: Word error rate in percent, by language code.
      average_wer: Mean over the languages.
      utterances: Number of decoded utterances of all languages.
      active_parameters: Number of parameters in the sub-network of each language, by language code.
      masks: The masks; None for a dense system.
      costs: Updates and multiply-adds.
      metrics: Records of metrics.jsonl.
      layers: Densities and overlaps of the masks by parameter; empty for a dense system.
      types: Densities and overlaps of the masks by module type; empty for a dense system.
    """

    name: str
    wer: dict[str, float]
    average_wer: float
    utterances: int
    active_parameters: dict[str, int]
    masks: PathwayMasks | None
    costs: Costs
    metrics: list[dict[str, Any]]
    layers: list[DensityRow] = field(default_factory=list)
    types: list[DensityRow] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """Mean sparsity over the languages; 0 for a dense system."""
        if self.masks is None:
            return 0.0
        return sum(self.masks.sparsity(language) for language in self.wer) / len(self.wer)


def newest_summary(name: str, folder: Path, split: str) -> Path:
    """Return the newest result summary of the system `name`.

    Raises:
      ValueError: The system has not been decoded.
    """
    pattern = layout.result_file(folder, "wer-summary", f"all-*-{split}", "*", ".json").name
    summaries = folder.glob(pattern)
    newest = max(summaries, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        raise ValueError(f"no {pattern} in {folder}: decode {name} first")
    return newest


def recorded_corpus(summary: Mapping[str, Any]) -> str:
    """Return the corpus of a summary; those of earlier versions, which read MLS only, do not record it."""
    return str(summary.get("corpus", "mls"))


def collect(name: str, exp_dir: Path, method: str, split: str) -> SystemResult:
    """Read the newest result of `method` (such as "streaming/modified_beam_search") on `split` of an experiment.

    Raises:
      ValueError: The experiment has not been trained, or not decoded with this method on this split.
    """
    summary_path = newest_summary(name, exp_dir / method, split)
    summary = read_summary(summary_path)
    masks_path = exp_dir / layout.MASKS_FILE
    masks = PathwayMasks.load(masks_path) if masks_path.exists() else None
    newest = checkpoints.newest(exp_dir)
    if newest is None:
        raise ValueError(f"no checkpoint in {exp_dir}: train {name} first")
    model = checkpoints.build(newest[1])
    languages = summary["languages"]
    return SystemResult(
        name=name,
        wer={code: scores["wer"] for code, scores in languages.items()},
        average_wer=summary["average_wer"],
        utterances=sum(scores["utterances"] for scores in languages.values()),
        active_parameters={code: analysis.active_parameters(model, masks, code) for code in languages},
        masks=masks,
        costs=read_costs(exp_dir, summary_path, languages, masks),
        layers=analysis.density_per_parameter(model, masks) if masks is not None else [],
        types=analysis.density_per_type(model, masks) if masks is not None else [],
        metrics=read_metrics(exp_dir / layout.METRICS_FILE),
    )


def rate_title(code: str) -> str:
    """Return the title of the error rates of a language: its code, and CER if its words are characters."""
    return f"{code} (CER)" if scored_by_characters(code) else code


def comparison_rows(results: list[SystemResult]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the comparison: WER per language and on average, sparsity, active parameters."""
    languages = list(results[0].wer)
    header = ["system", *map(rate_title, languages), "average WER (%)", "sparsity", "parameters active per language"]
    rows = [
        [
            result.name,
            *(f"{result.wer[language]:.1f}" for language in languages),
            f"{result.average_wer:.1f}",
            f"{100 * result.sparsity:.0f} %",
            _millions(result.active_parameters),
        ]
        for result in results
    ]
    return header, rows


def cost_rows(results: list[SystemResult]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the costs of search, training and decoding."""
    return ["system", *TITLES], [[result.name, *result.costs.cells()] for result in results]


def comparison_table(results: list[SystemResult]) -> str:
    """Format the comparison and the costs as text for a terminal."""
    tables = (comparison_rows(results), cost_rows(results))
    layout: dict[str, Any] = {"tablefmt": "simple_outline", "stralign": "right", "disable_numparse": True}
    return "\n".join(tabulate(rows, header, maxheadercolwidths=_HEADER_WIDTH, **layout) for header, rows in tables)


def relative_changes(results: list[SystemResult]) -> str:
    """Format the relative change of a system's average WER against each of the others, in percent.

    The system is the one named "pathways", otherwise the last one with masks, or the last one if none has masks.
    Systems without errors are left out: a change against them is infinite. The result is empty if no system is left.
    """
    pathways = [result for result in results if result.name == SYSTEMS["pathways"]]
    masked = [result for result in results if result.masks is not None]
    subject = (pathways or masked or results)[-1]
    changes = [
        f"{100 * (subject.average_wer / other.average_wer - 1):+.1f} % against {other.name}"
        for other in results
        if other is not subject and other.average_wer > 0
    ]
    return f"Average WER of {subject.name}: {'; '.join(changes)}" if changes else ""


def masks_summary(masks: PathwayMasks) -> str:
    """Summarize masks in one line: method, sparsity and overlap."""
    header = masks.header
    sparsities = ", ".join(f"{language} {100 * masks.sparsity(language):.1f} %" for language in masks.languages)
    return (
        f"Method {header.method}, granularity {header.granularity}, {header.allocation} allocation. "
        f"Sparsity: {sparsities}. Entries used by any language: {100 * masks.union_density():.1f} %; mean overlap of "
        f"two languages: {analysis.mean_overlap(masks):.2f}."
    )


def density_rows(rows: Sequence[DensityRow], first: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of densities; `first` is the title of the first column."""
    languages = list(rows[0].density) if rows else []
    header = [first, "entries", *languages, "any language", "one language only", "mean overlap", "specificity"]
    body = [
        [
            row.name,
            f"{row.num_entries}",
            *(f"{100 * row.density[language]:.1f} %" for language in languages),
            f"{100 * row.union:.1f} %",
            f"{100 * row.exclusive:.1f} %",
            f"{row.overlap:.2f}",
            f"{row.specificity:.2f}",
        ]
        for row in rows
    ]
    return header, body


def _millions(active: dict[str, int]) -> str:
    low, high = min(active.values()) / 1e6, max(active.values()) / 1e6
    return f"{low:.2f} M" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f} M"
