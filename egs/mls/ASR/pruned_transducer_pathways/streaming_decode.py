#!/usr/bin/env python3
r"""Decode every language chunk by chunk, many utterances at a time, as a live recogniser would.

Usage:

  ./pruned_transducer_pathways/streaming_decode.py --exp-dir exp/pathways --num-decode-streams 2000
  ./pruned_transducer_pathways/streaming_decode.py --exp-dir exp/pathways --epoch 30 --avg 9 \
    --decoding-method modified_beam_search --num-active-paths 4

Samples go in a chunk at a time, features are made on the way. The model's options are read from the experiment. Results
go to EXP_DIR/streaming/DECODING_METHOD: recogs-, errs- and wer-summary- files per language, and wer-summary-all- with
all of them and the real-time factor (seconds of computing per second of audio).
"""

from icefall_pathways.decoding.config import StreamingDecodeConfig
from icefall_pathways.decoding.decode_run import decode_streaming
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options, decode, print the table."""
    print(decode_streaming(parse(StreamingDecodeConfig, __doc__)))


if __name__ == "__main__":
    run_script(main)
