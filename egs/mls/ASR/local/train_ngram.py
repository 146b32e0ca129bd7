#!/usr/bin/env python3
"""Train an n-gram language model over tokens for each language, on its training transcripts.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("train-ngram")
