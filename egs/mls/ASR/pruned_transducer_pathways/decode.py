#!/usr/bin/env python3
r"""Decode whole utterances of every language and print their word error rates.

Usage:

  # the newest checkpoint, each language through its pathway if the experiment has masks
  ./pruned_transducer_pathways/decode.py --exp-dir exp/pathways
  # epoch 30, averaged over the 9 epochs before, beam search, through other masks
  ./pruned_transducer_pathways/decode.py --exp-dir exp/dense --epoch 30 --avg 9 \
    --decoding-method modified_beam_search --beam-size 4 --masks exp/masks-lap/masks.safetensors

The model's options are read from the experiment. Results go to EXP_DIR/DECODING_METHOD: recogs-, errs- and wer-summary-
files per language, and wer-summary-all- with all of them.
"""

from icefall_pathways.decoding.config import DecodeConfig
from icefall_pathways.decoding.decode_run import decode
from icefall_pathways.options import parse, run_script


def main() -> None:
    """Read the options, decode, print the table."""
    print(decode(parse(DecodeConfig, __doc__)))


if __name__ == "__main__":
    run_script(main)
