"""Copy the training cuts to tar files in Lhotse Shar, in random order, for sequential reading.

Run it after the index of the training cuts; train.py --from-shar 1 reads the tar files.

Usage:

  ./local/export_shar.py --manifest-dir data/fbank --languages "en fr it nl" --bpe-model data/lang_bpe_500/bpe.model

Several machines can share the work, as in compute_fbank.py. Each shard is complete in itself: an interrupted run
resumes with the missing ones.
"""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.data.corpus_cuts import CorpusCuts
from icefall_pathways.data.data_config import DataConfig
from icefall_pathways.data.shar import SharConfig, SharField, export_shar
from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.languages import normalize_languages, parse_languages
from icefall_pathways.ranges import PositiveInt, Seed
from icefall_pathways.sharding.executors import ExecutionConfig, open_workers

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(ExecutionConfig):
    """Options of the export."""

    manifest_dir: Path = Path("data/fbank")
    """Folder of the cuts; the tar files are written to folders below it."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    bpe_model: Path = Path("data/lang_bpe_500/bpe.model")
    """SentencePiece model of the index."""

    field: SharField = "features"
    """features: stored features; recording: audio as FLAC, for train.py --on-the-fly-feats 1."""

    shard_size: PositiveInt = 400
    """Cuts per shard; a loader worker keeps a shard of every language in memory."""

    seed: Seed = 42
    """Seed of the order."""


def run(config: Config) -> None:
    """Write the shards of all languages; complete ones are skipped."""
    shar = SharConfig(config.field, config.shard_size, config.seed)
    languages = normalize_languages(config.languages)
    options = DataConfig(manifest_dir=config.manifest_dir, languages=languages)
    cuts = CorpusCuts(options, Tokenizer(config.bpe_model))
    with open_workers(config) as workers:
        for language in parse_languages(languages):
            export_shar(cuts.open_index(language), cuts.training_files(language), shar, workers)
    config.report_part()
