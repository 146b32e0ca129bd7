#!/usr/bin/env python3
"""Compute and store the features of MUSAN's noise, music and babble in cuts of ten seconds, for noise augmentation.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("compute-fbank-musan")
