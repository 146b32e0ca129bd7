#!/usr/bin/env python3
r"""Compare decoded systems: a table here, and a page with plots.

Usage:

  ./pruned_transducer_pathways/report.py \
    --systems "dense=exp/dense-continued LAP=exp/lap pathways=exp/pathways" --output exp/report.html
"""

from icefall_pathways.options import parse, run_script
from icefall_pathways.reporting.report import ReportConfig, write_report


def main() -> None:
    """Read the options, write the page, print the table."""
    config = parse(ReportConfig, __doc__)
    print(write_report(config))
    print(f"Report: {config.output.resolve()}")


if __name__ == "__main__":
    run_script(main)
