#!/usr/bin/env python3
"""Deprecated name of calibrate_language_id.py.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("calibrate-language-id")
