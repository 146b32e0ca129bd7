"""Synthesize the embedded corpus: a small multi-speaker folder in MLS layout.

Usage:

  ./local/make_mini_corpus.py --corpus-dir download/mls --hours "en=2 fr=1 it=0.5 nl=1"
"""

from icefall_pathways.corpora.mini import MiniCorpusConfig as Config
from icefall_pathways.corpora.mini import make_mini_corpus as run

__all__ = ["Config", "run"]
