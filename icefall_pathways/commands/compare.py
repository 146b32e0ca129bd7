r"""Test whether the difference between two decoded systems is significant.

Usage:

  ./pruned_transducer_pathways/compare.py --system-a exp/dense-continued --system-b exp/pathways
  ./pruned_transducer_pathways/compare.py --system-a exp/lap --system-b exp/pathways --method greedy_search \
    --resample speaker --output exp/lap-pathways.json
  # several runs of each system, paired by their seeds
  ./pruned_transducer_pathways/compare.py --system-a exp/1/lap exp/2/lap --system-b exp/1/pathways exp/2/pathways

Prints, per language and on average, both word error rates, their difference with its 95 % confidence interval from the
paired bootstrap, and the two-sided p-values of the bootstrap and, for single runs, of the matched-pairs test.
"""

from icefall_pathways.reporting.compare import CompareConfig as Config
from icefall_pathways.reporting.compare import compare

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Compare and print the table."""
    print(compare(config))
