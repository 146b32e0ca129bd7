#!/usr/bin/env python3
"""Transcribe audio files, standard input or a microphone in streaming mode.

Usage and options: --help.
"""

from icefall_pathways.cli import run_command

if __name__ == "__main__":
    run_command("transcribe")
