"""Compute and store the features of all splits, and print how many utterances were kept.

Usage:

  ./local/compute_fbank.py --manifest-dir data/manifests --output-dir data/fbank --languages "en fr it nl"
"""

from icefall_pathways.data.fbank import ComputeFbankConfig as Config
from icefall_pathways.data.fbank import compute_fbank, summarize_cuts

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Store the features and print counts and hours."""
    report = compute_fbank(config)
    print(report.table())
    print(summarize_cuts(config))
    report.check(config.max_dropped_share)
