#!/usr/bin/env python3
r"""Gather a study: tables with mean and spread over seeds, and a plot of error rates over sparsities.

Usage:

  ./pruned_transducer_pathways/study.py --study-dir exp/study --output exp/study/study.md

run_study.sh trains and decodes the systems; what it has not reached yet is left out of the tables.
"""

from icefall_pathways.options import parse, run_script
from icefall_pathways.reporting.study import StudyConfig, write_study


def main() -> None:
    """Read the options, write the tables, print them."""
    config = parse(StudyConfig, __doc__)
    print(write_study(config))
    print(f"Study: {config.output.resolve()}")


if __name__ == "__main__":
    run_script(main)
