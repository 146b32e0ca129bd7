#!/usr/bin/env python3
"""Index the training cuts of each language, so that trainings start and resume within seconds.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("index-cuts")
