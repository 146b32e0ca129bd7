#!/usr/bin/env python3
"""Export a trained model for other runtimes.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("export")
