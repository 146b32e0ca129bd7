#!/usr/bin/env python3
"""Compute and store the features of all splits, and print how many utterances were kept.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("compute-fbank")
