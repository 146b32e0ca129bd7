#!/usr/bin/env python3
r"""Find masks: one sub-network for each language, or one for all of them (LAP), by iterative magnitude pruning.

Usage:

  # one mask per language, to 70 % sparsity
  ./pruned_transducer_pathways/prune.py --init-from exp/dense --exp-dir exp/masks-pathways --sparsity 0.7
  # language-agnostic pruning: one mask, found on all languages
  ./pruned_transducer_pathways/prune.py --init-from exp/dense --exp-dir exp/masks-lap --sparsity 0.7 \
    --prune-for all-languages
  # from a checkpoint of icefall's streaming Zipformer, with its tokens
  ./pruned_transducer_pathways/prune.py --init-from epoch-30.pt --encoder-type zipformer --bpe-model bpe.model \
    --exp-dir exp/masks
  # blocks of 4x4 weights; the first layer denser, all together at 70 %
  ./pruned_transducer_pathways/prune.py --init-from exp/dense --exp-dir exp/masks-blocks --sparsity 0.7 \
    --granularity block:4x4 --layer-sparsity "encoder.emformer_layers.0=0.5"
  # another language for a model that has been trained with masks
  ./pruned_transducer_pathways/prune.py --init-from exp/pathways --init-avg 1 --languages pl --exp-dir exp/masks-pl \
    --extend-masks exp/pathways/masks.safetensors

The masks end up in EXP_DIR/masks.safetensors, their description in EXP_DIR/masks.json. The same command goes on after
an interruption and skips the languages that are finished.
"""

from icefall_pathways.options import parse, run_script
from icefall_pathways.training.config import MaskSearchConfig
from icefall_pathways.training.runs import find_masks


def main() -> None:
    """Read the options and search."""
    find_masks(parse(MaskSearchConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
