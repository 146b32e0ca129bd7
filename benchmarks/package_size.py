#!/usr/bin/env python3
r"""Measure the size of a pathways package for each precision.

Usage:

  benchmarks/package_size.py --exp-dir egs/mls/ASR/exp/demo/pathways

Columns, in kilobytes (1,000 bytes), without the tokenizer, which is the same for any number of languages:

  package          weights and masks of all languages, and the model card
  bound            entropy of the mask codes, and the bytes of the weights that a language uses
  to the bound     their ratio
  per language     the package divided by the number of languages
  separate         sum of the packages of the single languages
  to separate      ratio of the package to them: what sharing weights saves
  dense            bytes of separate dense models in this precision, one per language
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from icefall_pathways.decoding.config import ModelSelection, TrainedModelConfig
from icefall_pathways.decoding.pretrained import TrainedModel, load_trained_model
from icefall_pathways.export.code_coding import entropy_bytes
from icefall_pathways.export.model_card import make_card
from icefall_pathways.export.package import CARD_FILE, WEIGHTS_FILE, write_package
from icefall_pathways.export.packed_weights import pack_weights
from icefall_pathways.export.precision import PRECISIONS, Precision
from icefall_pathways.options import parse, run_script
from icefall_pathways.pathways.masks import PathwayMasks

_BYTES: dict[Precision, int] = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Options of the benchmark."""

    exp_dir: Path = Path("egs/mls/ASR/exp/demo/pathways")
    """Experiment folder with pathways."""


class Sizes(NamedTuple):
    """Bytes of the packages of a model in one precision; see the module.

    Attributes:
      package: All languages.
      bound: Lower bound of `package`.
      separate: Sum over single languages.
      dense: Dense models, one per language.
    """

    package: int
    bound: float
    separate: int
    dense: int


def measure(trained: TrainedModel, exp_dir: Path, precision: Precision) -> Sizes:
    """Write packages of all languages and of each language, and return their sizes."""
    masks = trained.masks
    if masks is None:
        raise ValueError(f"{exp_dir} has no masks: expected an experiment with pathways")
    num_weights = sum(weight.numel() for weight in trained.model.state_dict().values())
    return Sizes(
        package=_size(trained, masks, exp_dir, precision),
        bound=_bound(trained, masks, precision),
        separate=sum(_size(trained, masks.restrict([language]), exp_dir, precision) for language in masks.languages),
        dense=len(masks.languages) * num_weights * _BYTES[precision],
    )


def _size(trained: TrainedModel, masks: PathwayMasks, exp_dir: Path, precision: Precision) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        features, vocab_size = trained.data_config.fbank, trained.tokenizer.vocab_size
        card = make_card(masks, trained.options, features, vocab_size, exp_dir, "unspecified")
        write_package(folder, card, trained.model, masks, trained.tokenizer, precision)
        return sum((folder / file).stat().st_size for file in (CARD_FILE, WEIGHTS_FILE))


def _bound(trained: TrainedModel, masks: PathwayMasks, precision: Precision) -> float:
    weights = pack_weights(trained.model.state_dict(), masks.codes, precision)
    return entropy_bytes(list(masks.codes.values())) + sum(w.numel() * w.element_size() for w in weights.values())


def main(config: BenchmarkConfig) -> None:
    """Print the table."""
    trained = load_trained_model(TrainedModelConfig(**vars(ModelSelection(exp_dir=config.exp_dir))))
    rows = []
    for precision in PRECISIONS:
        package, bound, separate, dense = measure(trained, config.exp_dir, precision)
        sizes = [f"{size / 1000:.1f}" for size in (package, bound, package / len(trained.languages), separate, dense)]
        to_bound, to_separate = f"{package / bound:.3f}", f"{package / separate:.3f}"
        rows.append([precision, *sizes[:2], to_bound, *sizes[2:4], to_separate, sizes[4]])
    header = ["precision", "package", "bound", "to the bound", "per language", "separate", "to separate", "dense"]
    print(tabulate(rows, header, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    run_script(lambda: main(parse(BenchmarkConfig, __doc__)))
