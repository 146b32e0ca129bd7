#!/usr/bin/env python3
"""Synthesize the embedded corpus: a small multi-speaker folder in MLS layout.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("make-mini-corpus")
