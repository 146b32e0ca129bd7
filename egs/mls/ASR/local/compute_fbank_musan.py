#!/usr/bin/env python3
"""Store the features of MUSAN's noise, music and babble, in pieces of ten seconds, for mixing into training cuts.

Usage:

  ./local/compute_fbank_musan.py --manifest-dir data/manifests --output-dir data/fbank
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.fbank import store_musan
from icefall_pathways.options import parse, run_script


@dataclass(frozen=True)
class Options:
    """The options of this script."""

    manifest_dir: Path = Path("data/manifests")
    """Where `lhotse prepare musan` left the recordings."""

    output_dir: Path = Path("data/fbank")
    """Where the features and musan_cuts.jsonl.gz go."""

    num_jobs: int = 0
    """Processes; 0 uses all cores."""


def main() -> None:
    """Read the options and store the features."""
    options = parse(Options, __doc__)
    store_musan(options.manifest_dir, options.output_dir, options.num_jobs)


if __name__ == "__main__":
    run_script(main)
