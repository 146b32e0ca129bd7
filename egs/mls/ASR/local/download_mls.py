#!/usr/bin/env python3
"""Download and unpack Multilingual LibriSpeech (OpenSLR 94); goes on where it was interrupted.

Usage:

  ./local/download_mls.py --corpus-dir download/mls --languages "en fr it nl" --audio-format opus
"""

from icefall_pathways.corpora.download import DownloadConfig, download_mls
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options and download."""
    download_mls(parse(DownloadConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
