#!/usr/bin/env python3
r"""Transcribe audio files, standard input or a microphone, as it comes.

Usage:

  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways --lang fr speech.mp3
  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways --output-format srt --output-dir subtitles *.flac
  ffmpeg -v error -i talk.webm -f wav - | ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways -
  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways mic

Files may have any format and rate that libsndfile reads, or ffmpeg if it is installed. Standard input is WAV, or raw
16 bit little-endian mono samples of --sample-rate. With --lang auto all pathways hear the first seconds, then the best
one goes on; calibrate_language.py finds out once how to choose. Audio that is cut or damaged is transcribed as far as
it goes; the exit status is then 1.
"""

import sys

from icefall_pathways.options import parse, run_script
from icefall_pathways.transcription.transcribe import TranscribeConfig, transcribe


def main() -> None:
    """Read the options, transcribe, tell what is wrong with the audio."""
    errors = transcribe(parse(TranscribeConfig, __doc__))
    for source, error in errors.items():
        print(f"error: {source}: {error}", file=sys.stderr)
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
