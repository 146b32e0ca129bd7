#!/usr/bin/env python3
"""Summarize a study: tables of means and spreads over seeds, and a plot of error rates over sparsities.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("study")
