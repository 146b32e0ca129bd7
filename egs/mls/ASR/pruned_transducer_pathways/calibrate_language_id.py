#!/usr/bin/env python3
"""Calibrate spoken language identification, and report its accuracy.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("calibrate-language-id")
