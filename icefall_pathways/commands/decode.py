r"""Decode whole utterances of every language and print word error rates.

Usage:

  # the newest checkpoint, each language through its pathway if the experiment has masks
  ./pruned_transducer_pathways/decode.py --exp-dir exp/pathways
  # epoch 30, averaged over the last 9 epochs, beam search, with the masks of another experiment
  ./pruned_transducer_pathways/decode.py --exp-dir exp/dense --epoch 30 --avg 9 \
    --decoding-method modified_beam_search --beam-size 4 --masks exp/masks-lap/masks.safetensors
  # 8 GPUs; after an interruption, the same command resumes
  ./pruned_transducer_pathways/decode.py --exp-dir exp/pathways --world-size 8

Model options are read from the experiment. Writes recogs-, errs- and wer-summary- files per language and
wer-summary-all- for all languages to EXP_DIR/DECODING_METHOD.
"""

from icefall_pathways.decoding.config import DecodeConfig as Config
from icefall_pathways.decoding.decode_run import decode

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Decode and print the table."""
    decode(config)
