#!/usr/bin/env python3
"""Train a SentencePiece model on the training transcripts of all languages.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("train-bpe")
