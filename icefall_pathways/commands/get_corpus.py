"""Download or synthesize a registered corpus with default options.

Usage:

  ./local/get_corpus.py --corpus mls --corpus-dir download/mls --languages "en fr it nl"
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.corpora.registry import CorpusName, get_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import Options

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(Options):
    """Options of downloading or synthesizing a corpus."""

    corpus: CorpusName = "mls"
    """Name of the corpus in corpora/registry.py."""

    corpus_dir: Path = Path("download/mls")
    """Folder for the corpus."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    num_jobs: int = 0
    """Number of processes; 0 uses all cores."""


def run(config: Config) -> None:
    """Download or synthesize the corpus.

    Raises:
      CorpusError: The corpus can be neither downloaded nor synthesized.
    """
    spec, languages = get_corpus(config.corpus), parse_languages(config.languages)
    if spec.acquire_command is None:
        raise CorpusError(f"--corpus {spec.name} cannot be downloaded: obtain it and pass its folder as --corpus-dir")
    spec.check_languages(languages)
    spec.load().acquire(config.corpus_dir, languages, config.num_jobs)
