#!/usr/bin/env python3
"""Serve a model: speech recognition for many clients over websockets and HTTP.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("serve")
