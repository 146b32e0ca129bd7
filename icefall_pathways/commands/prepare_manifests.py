"""Convert a corpus into Lhotse manifests, and print how many utterances were kept and rejected.

Usage:

  ./local/prepare_manifests.py --corpus mls --corpus-dir /data/mls --output-dir data/manifests --languages "en fr it nl"

Several machines can share the work: with --executor dask, or as the parts of an array job, --shard 1/64 to 64/64; after
all parts, the same command without --shard joins them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from icefall_pathways.corpora.layout import SPLITS, describe_corpus
from icefall_pathways.corpora.registry import CorpusName, get_corpus
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import Share
from icefall_pathways.sharding.executors import ExecutionConfig, open_workers

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config(ExecutionConfig):
    """Options of the conversion."""

    corpus: CorpusName = "mls"
    """Name of the corpus in corpora/registry.py; mini has the layout of mls."""

    corpus_dir: Path = Path("download/mls")
    """Folder of the corpus; for MLS, the folder that contains the mls_<language> folders. manifests: one or several
    folders, separated by spaces."""

    output_dir: Path = Path("data/manifests")
    """Folder for the manifests."""

    languages: str = "en fr it nl"
    """Languages, separated by spaces."""

    subset: str = "train"
    """Training data: train (all), or limited supervision: 10hr, or its parts 9hr and 1hr."""

    keep_case: bool = False
    """Keep upper-case letters, of a corpus that has them. 0: convert them to lower case."""

    keep_punctuation: bool = False
    """Keep the punctuation of sentences, of a corpus that has it. 0: remove it."""

    manifest_weights: str = ""
    """manifests: a weight for the sampling of each folder, such as "1 0.5". Empty: 1 for all."""

    language_map: str = ""
    """manifests: languages by the names that supervisions use, such as "Castilian=es,none=fr"."""

    max_dropped_share: Share = 0.1
    """Fail if a split of a language loses more than this share of its utterances."""

    num_jobs: int = field(default=4, kw_only=True)
    """Number of processes; 0 uses all cores."""


def run(config: Config) -> None:
    """Write the manifests and print the counts of kept and rejected utterances."""
    languages = parse_languages(config.languages)
    spec = get_corpus(config.corpus)
    spec.check_languages(languages)
    text = spec.text_options(config.keep_case, config.keep_punctuation)
    describe_corpus(config.output_dir, spec.name, text, spec.label(config.corpus_dir))
    options = {name: getattr(config, name) for name in spec.manifest_options}
    with open_workers(config) as workers:
        report = spec.load().prepare_manifests(
            config.corpus_dir, config.output_dir, languages, config.subset, workers, **options
        )
    if not config.report_part():
        print(report.table())
        report.check(languages, SPLITS, max(config.max_dropped_share, spec.expected_dropped_share))
