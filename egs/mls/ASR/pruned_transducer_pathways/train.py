#!/usr/bin/env python3
r"""Train a multilingual streaming transducer: dense, or with a sub-network for each language.

Usage:

  ./prepare.sh
  # the dense model
  ./pruned_transducer_pathways/train.py --world-size 8 --exp-dir exp/dense --num-epochs 30 --use-fp16 1
  # pathways: from the dense model, with the masks that prune.py found
  ./pruned_transducer_pathways/train.py --world-size 8 --exp-dir exp/pathways --num-epochs 10 --use-fp16 1 \
    --init-from exp/dense --masks exp/masks-pathways/masks.safetensors
  # from a checkpoint of icefall's streaming Zipformer, for other tokens
  ./pruned_transducer_pathways/train.py --world-size 8 --exp-dir exp/dense --use-fp16 1 \
    --encoder-type zipformer --init-from epoch-30.pt --reinit-vocab 1
  # a language more, without changing what the others compute; the masks are from prune.py --extend-masks
  ./pruned_transducer_pathways/train.py --exp-dir exp/pathways-pl --init-from exp/pathways --init-avg 1 \
    --masks exp/masks-pl/masks.safetensors --languages pl --freeze-languages "en fr it nl"
  # several machines
  torchrun --nnodes 2 --nproc_per_node 8 ./pruned_transducer_pathways/train.py --exp-dir exp/dense

The same command goes on after an interruption, from the newest checkpoint.
"""

from icefall_pathways.options import parse, run_script
from icefall_pathways.training.config import ExperimentConfig
from icefall_pathways.training.runs import train


def main() -> None:
    """Read the options and train."""
    train(parse(ExperimentConfig, __doc__))


if __name__ == "__main__":
    run_script(main)
