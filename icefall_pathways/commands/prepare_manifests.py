"""Convert a corpus into Lhotse manifests, and print how many utterances were kept and rejected.

Usage:

  ./local/prepare_manifests.py --corpus mls --corpus-dir /data/mls --output-dir data/manifests --languages "en fr it nl"
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.corpora.registry import CorpusName, get_corpus
from icefall_pathways.languages import parse_languages

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Options of the conversion."""

    corpus: CorpusName = "mls"
    """Name of the corpus in corpora/registry.py; mini has the layout of mls."""

    corpus_dir: Path = Path("download/mls")
    """Folder of the corpus; for MLS, the folder that contains the mls_<language> folders."""

    output_dir: Path = Path("data/manifests")
    """Folder for the manifests."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    subset: str = "train"
    """Training data: train (all), or limited supervision: 10hr, or its parts 9hr and 1hr."""

    max_dropped_share: float = 0.1
    """Fail if a split of a language loses more than this share of its utterances."""

    num_jobs: int = 4
    """Number of files to read in parallel."""


def run(config: Config) -> None:
    """Write the manifests and print the counts of kept and rejected utterances."""
    languages = parse_languages(config.languages)
    spec = get_corpus(config.corpus)
    spec.check_languages(languages)
    prepare = spec.load().prepare_manifests
    report = prepare(config.corpus_dir, config.output_dir, languages, config.subset, config.num_jobs)
    print(report.table())
    report.check(config.max_dropped_share)
