#!/usr/bin/env python3
"""Download or synthesize a registered corpus with default options.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("get-corpus")
