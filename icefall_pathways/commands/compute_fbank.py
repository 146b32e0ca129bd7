"""Compute and store the features of all splits, and print what was kept.

Usage:

  ./local/compute_fbank.py --manifest-dir data/manifests --output-dir data/fbank --languages "en fr it nl"
"""

from icefall_pathways.data.fbank import StoreConfig as Config
from icefall_pathways.data.fbank import describe, store_features

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Store the features and print counts and hours."""
    report = store_features(config)
    print(report.table())
    print(describe(config))
    report.check(config.max_dropped_share)
