r"""Decode every language chunk by chunk, many streams in a batch, and print word error rates.

Usage:

  ./pruned_transducer_pathways/streaming_decode.py --exp-dir exp/pathways --num-decode-streams 2000
  ./pruned_transducer_pathways/streaming_decode.py --exp-dir exp/pathways --epoch 30 --avg 9 \
    --decoding-method modified_beam_search --num-active-paths 4
  ./pruned_transducer_pathways/streaming_decode.py --exp-dir exp/pathways --world-size 8

Audio samples arrive a chunk at a time and features are computed online. Model options are read from the experiment.
Writes recogs-, errs- and wer-summary- files per language and wer-summary-all- for all languages, with the real-time
factor (seconds of computation per second of audio), to EXP_DIR/streaming/DECODING_METHOD.
"""

from icefall_pathways.decoding.config import StreamingDecodeConfig as Config
from icefall_pathways.decoding.decode_run import decode_streaming

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Decode and print the table."""
    decode_streaming(config)
