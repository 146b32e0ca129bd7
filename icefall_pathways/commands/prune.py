r"""Search masks by iterative magnitude pruning: one sub-network per language, or one for all languages (LAP).

Usage:

  # one mask per language, at 70 % sparsity
  ./pruned_transducer_pathways/prune.py --init-from exp/dense --exp-dir exp/masks-pathways --sparsity 0.7
  # language-agnostic pruning (LAP): one mask, searched on all languages
  ./pruned_transducer_pathways/prune.py --init-from exp/dense --exp-dir exp/masks-lap --sparsity 0.7 \
    --prune-for all-languages
  # from a checkpoint of icefall's streaming Zipformer and its SentencePiece model
  ./pruned_transducer_pathways/prune.py --init-from epoch-30.pt --encoder-type zipformer --bpe-model bpe.model \
    --exp-dir exp/masks
  # blocks of 4x4 weights; the first layer at 50 %, the whole model at 70 %
  ./pruned_transducer_pathways/prune.py --init-from exp/dense --exp-dir exp/masks-blocks --sparsity 0.7 \
    --granularity block:4x4 --layer-sparsity "encoder.emformer_layers.0=0.5"
  # another language for a model that was trained with masks
  ./pruned_transducer_pathways/prune.py --init-from exp/pathways --init-avg 1 --languages pl --exp-dir exp/masks-pl \
    --extend-masks exp/pathways/masks.safetensors

Writes EXP_DIR/masks.safetensors and its description, EXP_DIR/masks.json. The same command resumes an interrupted search
and skips finished languages.
"""

from collections.abc import Sequence

from icefall_pathways.recipe.programs import read_with_defaults
from icefall_pathways.training.config import MaskSearchConfig as Config
from icefall_pathways.training.config import with_languages_of_data
from icefall_pathways.training.runs import find_masks as run

__all__ = ["Config", "read", "run"]


def read(config_class: type[Config], description: str, argv: Sequence[str], prog: str | None = None) -> Config:
    """Read the options; the languages of the data folder are a default."""
    return read_with_defaults(config_class, description, argv, (with_languages_of_data,), prog)
