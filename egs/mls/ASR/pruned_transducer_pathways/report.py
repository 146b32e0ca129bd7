#!/usr/bin/env python3
"""Compare decoded systems: print a table and write a page with plots.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("report")
