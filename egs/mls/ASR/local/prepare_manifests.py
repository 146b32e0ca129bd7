#!/usr/bin/env python3
"""Convert a folder in MLS layout into Lhotse manifests, and print what was rejected.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("prepare-manifests")
