r"""Train a multilingual streaming transducer: dense, or with one sparse sub-network per language.

Usage:

  ./prepare.sh
  # the dense model
  ./pruned_transducer_pathways/train.py --world-size 8 --exp-dir exp/dense --num-epochs 30 --use-fp16 1
  # pathways: fine-tune the dense model with the masks that prune.py produced
  ./pruned_transducer_pathways/train.py --world-size 8 --exp-dir exp/pathways --num-epochs 10 --use-fp16 1 \
    --init-from exp/dense --masks exp/masks-pathways/masks.safetensors
  # fine-tune a checkpoint of icefall's streaming Zipformer with another vocabulary
  ./pruned_transducer_pathways/train.py --world-size 8 --exp-dir exp/dense --use-fp16 1 \
    --encoder-type zipformer --init-from epoch-30.pt --reinit-vocab 1
  # add a language without changing the output of the others; the masks are from prune.py --extend-masks
  ./pruned_transducer_pathways/train.py --exp-dir exp/pathways-pl --init-from exp/pathways --init-avg 1 \
    --masks exp/masks-pl/masks.safetensors --languages pl --freeze-languages "en fr it nl"
  # several machines
  torchrun --nnodes 2 --nproc_per_node 8 ./pruned_transducer_pathways/train.py --exp-dir exp/dense

The same command resumes an interrupted training from its newest checkpoint.
"""

from collections.abc import Sequence

from icefall_pathways.recipe.programs import read_with_defaults
from icefall_pathways.training.config import ExperimentConfig as Config
from icefall_pathways.training.config import with_languages_of_data
from icefall_pathways.training.runs import train as run

__all__ = ["Config", "read", "run"]


def read(config_class: type[Config], description: str, argv: Sequence[str], prog: str | None = None) -> Config:
    """Read the options; the languages of the data folder are a default."""
    return read_with_defaults(config_class, description, argv, (with_languages_of_data,), prog)
