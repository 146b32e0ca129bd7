#!/usr/bin/env python3
"""Test whether the difference between two decoded systems is significant.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("compare")
