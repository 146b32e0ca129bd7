#!/usr/bin/env python3
"""Synthesise the embedded corpus: a small multi-speaker folder in MLS layout.

Usage:

  ./local/make_mini_corpus.py --corpus-dir download/mls --hours "en=2 fr=1 it=0.5 nl=1"
"""

from icefall_pathways.corpora.mini import MiniCorpusConfig, make_mini_corpus
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options and make the corpus."""
    make_mini_corpus(parse(MiniCorpusConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
