#!/usr/bin/env python3
"""Copy the training cuts to tar files in Lhotse Shar, in random order, for sequential reading.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("export-shar")
