"""One page that compares systems: table, training curves, word error rates, masks."""

import base64
import html
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.files import atomic_write
from icefall_pathways.pathways import analysis
from icefall_pathways.pathways import plots as mask_plots
from icefall_pathways.reporting import plots, results
from icefall_pathways.reporting.results import SystemResult

_RANKED = 10  # layers in the table of the most language-specific ones

_STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .8em; border-bottom: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; margin: .5em 0 1.5em }
"""


@dataclass(frozen=True)
class ReportConfig:
    """What to compare, and where the page goes."""

    systems: str = "dense=exp/dense-continued LAP=exp/lap pathways=exp/pathways"
    """The systems as NAME=EXP_DIR, in the order of the table; names with spaces in quotes: "'my LAP=my exp/lap'"."""

    method: str = "streaming/modified_beam_search"
    """The folder of results inside each experiment."""

    split: str = "test"
    """The decoded split."""

    output: Path = Path("exp/report.html")
    """The page."""

    def experiments(self) -> dict[str, Path]:
        """The folder of each system, by its name.

        Raises:
          ValueError: An entry is not NAME=EXP_DIR.
        """
        try:
            pairs = [word.partition("=") for word in shlex.split(self.systems)]
        except ValueError as error:  # an open quote
            raise ValueError(f"--systems {self.systems!r}: {error}") from error
        if not pairs or not all(name and folder for name, _, folder in pairs):
            raise ValueError(f'--systems {self.systems!r}: expected entries such as "dense=exp/dense"')
        return {name: Path(folder) for name, _, folder in pairs}


def write_report(config: ReportConfig) -> str:
    """Write the page and return the comparison as text for a terminal.

    Raises:
      ValueError: A system has not been trained or decoded.
    """
    systems = [
        results.collect(name, exp_dir, config.method, config.split) for name, exp_dir in config.experiments().items()
    ]
    decoded = [f"{system.name} was decoded in {' '.join(system.wer)}" for system in systems]
    for system, told in zip(systems, decoded, strict=True):
        if system.wer.keys() != systems[0].wer.keys():
            raise ValueError(f"{told}, but {decoded[0]}: decode all systems in the same languages")
    body = [
        "<h1>ASR pathways: report</h1>",
        f"<p>Word error rate (%) of {html.escape(config.method)} on {systems[0].utterances} utterances of "
        f"{html.escape(config.split)}.</p>",
        _html_table(*results.comparison_rows(systems)),
        f"<p>{html.escape(results.relative_changes(systems))}</p>",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for title, pictures in _pictures(systems, Path(folder)):
            body += [f"<h2>{html.escape(title)}</h2>", *map(_embed, pictures)]
        for i, system in enumerate(systems):
            body += _masks_section(system, Path(folder) / str(i))
    with atomic_write(config.output) as page:
        page.write_text(
            "<!doctype html><html><head><meta charset='utf-8'><title>ASR pathways</title>"
            f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>",
            encoding="utf-8",
        )
    return f"{results.comparison_table(systems)}\n{results.relative_changes(systems)}"


def _pictures(systems: list[SystemResult], folder: Path) -> list[tuple[str, list[Path]]]:
    wer = folder / "wer.png"
    plots.plot_wer(systems, wer)
    sections = [("Word error rates", [wer]), ("Training", [])]
    for system in systems:
        curves = folder / f"curves-{len(sections[1][1])}.png"
        plots.plot_training_curves(system, curves)
        sections[1][1].append(curves)
    return sections


def _masks_section(system: SystemResult, folder: Path) -> list[str]:
    """What the masks of a system look like: nothing for a dense one."""
    if system.masks is None:
        return []
    folder.mkdir()
    pictures = [folder / name for name in ("density.png", "overlap.png", "specificity.png")]
    mask_plots.plot_density(system.layers, pictures[0])
    mask_plots.plot_overlap(system.masks, pictures[1])
    mask_plots.plot_specificity(system.layers, pictures[2])
    ranked = analysis.rank_by_specificity(system.layers)
    return [
        f"<h2>Masks of {html.escape(system.name)}</h2>",
        f"<p>{html.escape(results.masks_summary(system.masks))}</p>",
        _html_table(*results.density_rows(system.types, "type of module")),
        _embed(pictures[0]),
        _embed(pictures[1]),
        f"<p>The {len(ranked[:_RANKED])} most language-specific of {len(ranked)} layers. One alone: share of the used "
        "entries that a single language uses. Specificity: 0 where languages use the same entries, 1 where they have "
        "no more in common than by chance (1 less the mean of Cohen's kappa).</p>",
        _html_table(*results.density_rows(ranked[:_RANKED], "layer")),
        _embed(pictures[2]),
    ]


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _embed(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f"<img alt='{picture.stem}' src='data:image/png;base64,{data}'>"
