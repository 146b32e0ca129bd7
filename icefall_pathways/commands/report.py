r"""Compare decoded systems: print tables of error rates and costs, and write a page with plots.

Usage:

  ./pruned_transducer_pathways/report.py \
    --systems "dense=exp/dense-continued LAP=exp/lap pathways=exp/pathways" --output exp/report.html
"""

from icefall_pathways.reporting.report import ReportConfig as Config
from icefall_pathways.reporting.report import write_report

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Write the page and print the tables."""
    print(write_report(config))
    print(f"Report: {config.output.resolve()}")
