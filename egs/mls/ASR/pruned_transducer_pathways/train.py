#!/usr/bin/env python3
"""Train a multilingual streaming transducer: dense, or with one sparse sub-network per language.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("train")
