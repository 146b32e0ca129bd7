#!/usr/bin/env python3
r"""Tell whether one decoded system is better than another, or only luckier.

Usage:

  ./pruned_transducer_pathways/compare.py --system-a exp/dense-continued --system-b exp/pathways
  ./pruned_transducer_pathways/compare.py --system-a exp/lap --system-b exp/pathways --method greedy_search \
    --resample speaker --output exp/lap-pathways.json

Per language and on average: both word error rates, their difference with its 95 % interval by the paired bootstrap, and
the probability (two-sided) of so large a difference between systems that are equally good, by the bootstrap and by the
matched-pairs test.
"""

from icefall_pathways.options import parse, run_script
from icefall_pathways.reporting.compare import CompareConfig, compare


def main() -> None:
    """Read the options, compare, print the table."""
    print(compare(parse(CompareConfig, __doc__)))


if __name__ == "__main__":
    run_script(main)
