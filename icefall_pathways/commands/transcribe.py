r"""Transcribe audio files, standard input or a microphone in streaming mode.

Usage:

  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways --lang fr speech.mp3
  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways --output-format srt --output-dir subtitles *.flac
  arecord -q -f S16_LE -r 16000 | ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways -
  ./pruned_transducer_pathways/transcribe.py --exp-dir exp/pathways mic

Files and standard input may have any common audio or video format (FFmpeg's libraries are included) and any sample
rate; with --sample-rate, standard input is raw 16-bit little-endian mono. Of several channels, those with a signal are
averaged, unless --channel selects one. With --lang auto, all pathways decode the first seconds and the most confident
one continues; run calibrate_language_id.py once before. Parts that cannot be decoded are skipped and reported, and the
exit status is 1.
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
