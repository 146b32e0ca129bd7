#!/usr/bin/env python3
"""Convert a corpus into Lhotse manifests, and print how many utterances were kept and rejected.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("prepare-manifests")
