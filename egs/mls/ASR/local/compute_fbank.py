#!/usr/bin/env python3
"""Store the features of all splits, and print what was kept.

Usage:

  ./local/compute_fbank.py --manifest-dir data/manifests --output-dir data/fbank --languages "en fr it nl"
"""

from icefall_pathways.data.fbank import StoreConfig, describe, store_features
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options, store the features, print counts and hours."""
    config = parse(StoreConfig, __doc__)
    report = store_features(config)
    print(report.table())
    print(describe(config))
    report.check(config.max_dropped_share)


if __name__ == "__main__":
    run_script(main)
