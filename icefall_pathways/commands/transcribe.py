r"""Transcribe audio files, standard input or a microphone in streaming mode.

Usage:

  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways --lang fr speech.mp3
  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways --output-format srt --output-dir subtitles *.flac
  ffmpeg -v error -i talk.webm -f wav - | ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways -
  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways mic

Files may have any format and sample rate that libsndfile or, if installed, ffmpeg can read. Standard input is WAV or
raw 16-bit little-endian mono samples at --sample-rate. With --lang auto, all pathways decode the first seconds and the
most confident one continues; run calibrate_language_id.py once before. Truncated or damaged audio is transcribed up to
the damage, and the exit status is 1.
"""

import sys

from icefall_pathways.transcription.transcribe import TranscribeConfig as Config
from icefall_pathways.transcription.transcribe import transcribe

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Transcribe, and report damaged sources on standard error."""
    errors = transcribe(config)
    for source, error in errors.items():
        print(f"error: {source}: {error}", file=sys.stderr)
    if errors:
        sys.exit(1)
