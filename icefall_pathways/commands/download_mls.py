"""Download and unpack Multilingual LibriSpeech (OpenSLR 94); resumes interrupted downloads.

Usage:

  ./local/download_mls.py --corpus-dir download/mls --languages "en fr it nl" --audio-format opus
"""

from icefall_pathways.corpora.download import DownloadConfig as Config
from icefall_pathways.corpora.download import download_mls as run

__all__ = ["Config", "run"]
