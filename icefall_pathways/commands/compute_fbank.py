"""Compute and store the features of all splits, and print how many utterances were kept.

Usage:

  ./local/compute_fbank.py --manifest-dir data/manifests --output-dir data/fbank --languages "en fr it nl"

Several machines can share the work: with --executor dask, or as the parts of an array job, --shard 1/64 to 64/64; after
all parts, the same command without --shard joins them.
"""

from icefall_pathways.corpora.layout import SPLITS
from icefall_pathways.data.fbank import ComputeFbankConfig as Config
from icefall_pathways.data.fbank import compute_fbank, summarize_cuts
from icefall_pathways.languages import parse_languages

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Store the features and print counts and hours."""
    report = compute_fbank(config)
    if config.report_part():
        return
    print(report.table())
    print(summarize_cuts(config))
    report.check(parse_languages(config.languages), SPLITS, config.max_dropped_share)
