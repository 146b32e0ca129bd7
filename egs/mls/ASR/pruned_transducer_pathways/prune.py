#!/usr/bin/env python3
"""Search masks by iterative magnitude pruning: one sub-network per language, or one for all languages (LAP).

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("prune")
