"""Index the training cuts of each language, so that trainings start and resume within seconds.

Training builds a missing or outdated index itself, in one process while the others wait.

Usage:

  ./local/index_cuts.py --manifest-dir data/fbank --languages "en fr it nl" --bpe-model data/lang_bpe_500/bpe.model
"""

from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from icefall_pathways.data.corpus_cuts import CorpusCuts
from icefall_pathways.data.data_config import DataConfig
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.data.usable_cuts import CutFlag
from icefall_pathways.languages import normalize_languages, parse_languages
from icefall_pathways.ranges import Options

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(Options):
    """Options of the index."""

    manifest_dir: Path = Path("data/fbank")
    """Folder of the cuts."""

    index_dir: Path | None = None
    """Folder of the indexes. None: the folder index in --manifest-dir."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    bpe_model: Path = Path("data/lang_bpe_500/bpe.model")
    """SentencePiece model; the index counts the tokens of each cut."""


def run(config: Config) -> None:
    """Write the indexes that are missing or outdated, and print the content of all."""
    languages = normalize_languages(config.languages)
    options = DataConfig(manifest_dir=config.manifest_dir, index_dir=config.index_dir, languages=languages)
    cuts = CorpusCuts(options, Tokenizer(config.bpe_model))
    rows = []
    for language in parse_languages(languages):
        index = cuts.open_index(language)
        unusable = index.flags & ~(CutFlag.NO_AUDIO | CutFlag.NO_FEATURES | CutFlag.UNSUITABLE_AUDIO)
        hours = index.durations.sum() / 3600
        rows.append([language.code, len(index), hours, int(index.num_tokens.sum()), int((unusable != 0).sum())])
    header = ["language", "training cuts", "hours", "tokens", "unusable"]
    print(tabulate(rows, header, tablefmt="simple_outline", floatfmt=".2f"))
