#!/usr/bin/env python3
"""Measure latency and real-time factor of the streaming recognizer.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("latency")
