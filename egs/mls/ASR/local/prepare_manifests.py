#!/usr/bin/env python3
"""Read a folder in MLS layout into Lhotse manifests, and count what cannot be used.

Usage:

  ./local/prepare_manifests.py --corpus-dir /data/mls --output-dir data/manifests --languages "en fr it nl"
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.corpora.mls import prepare_manifests
from icefall_pathways.languages import parse_languages
from icefall_pathways.options import parse, run_script


@dataclass(frozen=True)
class Options:
    """The options of this script."""

    corpus_dir: Path = Path("download/mls")
    """The folder that holds mls_<language> folders."""

    output_dir: Path = Path("data/manifests")
    """Where manifests go."""

    languages: str = "en fr it nl"
    """Languages."""

    subset: str = "train"
    """Training data: train (all), or limited supervision: 10hr, or its parts 9hr and 1hr."""

    max_dropped_share: float = 0.1
    """Stop with an error if a language and split loses more than this share of its utterances."""

    num_jobs: int = 4
    """Files read at the same time."""


def main() -> None:
    """Read the options, write the manifests, print what was kept."""
    options = parse(Options, __doc__)
    report = prepare_manifests(
        options.corpus_dir, options.output_dir, parse_languages(options.languages), options.subset, options.num_jobs
    )
    print(report.table())
    report.check(options.max_dropped_share)


if __name__ == "__main__":
    run_script(main)
