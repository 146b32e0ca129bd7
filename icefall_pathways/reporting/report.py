"""HTML report that compares systems: table, training curves, word error rates and masks."""

import base64
import html
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.files import atomic_write
from icefall_pathways.pathways import analysis
from icefall_pathways.pathways import plots as mask_plots
from icefall_pathways.ranges import Options
from icefall_pathways.reporting import plots, results
from icefall_pathways.reporting.costs import NOTE as COSTS_NOTE
from icefall_pathways.reporting.results import SystemResult

_NUM_RANKED = 10  # rows in the table of the most language-specific layers

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .8em; border-bottom: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; margin: .5em 0 1.5em }
"""


@dataclass(frozen=True)
class ReportConfig(Options):
    """Options of the report."""

    systems: str = "dense=exp/dense-continued LAP=exp/lap pathways=exp/pathways"
    """Systems as NAME=EXP_DIR, in the order of the table; quote names with spaces: "'my LAP=my exp/lap'". The one named
    pathways, or else the last one with masks, is compared with each of the others."""

    method: str = "streaming/modified_beam_search"
    """Folder of the results in each experiment folder, such as greedy_search."""

    split: str = "test"
    """Decoded split, test or dev."""

    output: Path = Path("exp/report.html")
    """HTML file of the report."""

    def experiments(self) -> dict[str, Path]:
        """Return the experiment folder of each system by its name.

        Raises:
          ValueError: An entry is not NAME=EXP_DIR.
        """
        try:
            pairs = [word.partition("=") for word in shlex.split(self.systems)]
        except ValueError as error:  # unbalanced quotes
            raise ValueError(f"--systems {self.systems!r}: {error}") from error
        if not pairs or not all(name and folder for name, _, folder in pairs):
            raise ValueError(f'--systems {self.systems!r}: expected entries such as "dense=exp/dense"')
        return {name: Path(folder) for name, _, folder in pairs}


def write_report(config: ReportConfig) -> str:
    """Write the report and return the comparison as text for a terminal.

    Raises:
      ValueError: A system has not been trained or decoded, or the systems were decoded in different languages.
    """
    systems = [
        results.collect(name, exp_dir, config.method, config.split) for name, exp_dir in config.experiments().items()
    ]
    decoded = [f"{system.name} was decoded in {' '.join(system.wer)}" for system in systems]
    for system, description in zip(systems, decoded, strict=True):
        if system.wer.keys() != systems[0].wer.keys():
            raise ValueError(f"{description}, but {decoded[0]}: decode all systems in the same languages")
    changes = results.relative_changes(systems)
    body = [
        "<h1>ASR pathways: report</h1>",
        f"<p>Word error rate (%) of {html.escape(config.method)} on {systems[0].utterances} utterances of "
        f"{html.escape(config.split)}.</p>",
        _html_table(*results.comparison_rows(systems)),
        f"<p>{html.escape(COSTS_NOTE)}</p>",
        _html_table(*results.cost_rows(systems)),
        *([f"<p>{html.escape(changes)}</p>"] if changes else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for title, images in _plot_sections(systems, Path(folder)):
            body += [f"<h2>{html.escape(title)}</h2>", *map(_embed, images)]
        for i, system in enumerate(systems):
            body += _masks_section(system, Path(folder) / str(i))
    with atomic_write(config.output) as page:
        page.write_text(
            "<!doctype html><html><head><meta charset='utf-8'><title>ASR pathways</title>"
            f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>",
            encoding="utf-8",
        )
    return f"{results.comparison_table(systems)}\n{changes}".rstrip()


def _plot_sections(systems: list[SystemResult], folder: Path) -> list[tuple[str, list[Path]]]:
    wer = folder / "wer.png"
    plots.plot_wer(systems, wer)
    sections = [("Word error rates", [wer]), ("Training", [])]
    for system in systems:
        curves = folder / f"curves-{len(sections[1][1])}.png"
        plots.plot_training_curves(system, curves)
        sections[1][1].append(curves)
    return sections


def _masks_section(system: SystemResult, folder: Path) -> list[str]:
    """Describe the masks of a system; empty for a dense system."""
    if system.masks is None:
        return []
    folder.mkdir()
    images = [folder / name for name in ("density.png", "overlap.png", "specificity.png")]
    mask_plots.plot_density(system.layers, images[0])
    mask_plots.plot_overlap(system.masks, images[1])
    mask_plots.plot_specificity(system.layers, images[2])
    ranked = analysis.rank_by_specificity(system.layers)
    return [
        f"<h2>Masks of <bdi>{html.escape(system.name)}</bdi></h2>",
        f"<p>{html.escape(results.masks_summary(system.masks))}</p>",
        _html_table(*results.density_rows(system.types, "type of module")),
        _embed(images[0]),
        _embed(images[1]),
        f"<p>The {len(ranked[:_NUM_RANKED])} most language-specific of {len(ranked)} layers. One language only: share "
        "of the entries in any mask that are in a single mask. Specificity: 1 minus the mean of Cohen's kappa; 0 if "
        "all languages use the same entries, 1 if their masks overlap as much as random masks.</p>",
        _html_table(*results.density_rows(ranked[:_NUM_RANKED], "layer")),
        _embed(images[2]),
    ]


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        # Names of systems may be in any script.
        return "<tr>" + "".join(f"<{tag} dir='auto'>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _embed(image: Path) -> str:
    data = base64.b64encode(image.read_bytes()).decode("ascii")
    return f"<img alt='{image.stem}' src='data:image/png;base64,{data}'>"
