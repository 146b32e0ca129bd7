r"""Summarize a study: tables of error rates, costs and differences over seeds, and a plot over sparsities.

Usage:

  ./pruned_transducer_pathways/study.py --study-dir exp/study --output exp/study/study.md

run_study.sh trains and decodes the systems; systems that have not been decoded yet are omitted.
"""

from icefall_pathways.reporting.study import StudyConfig as Config
from icefall_pathways.reporting.study import write_study

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Write the tables and print them."""
    print(write_study(config))
    print(f"Study: {config.output.resolve()}")
