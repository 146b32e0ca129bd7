#!/usr/bin/env python3
"""Decode every language chunk by chunk, many streams in a batch, and print word error rates.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("streaming-decode")
