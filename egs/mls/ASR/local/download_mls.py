#!/usr/bin/env python3
"""Download and unpack Multilingual LibriSpeech (OpenSLR 94); resumes interrupted downloads.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("download-mls")
