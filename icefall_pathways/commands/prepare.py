"""Prepare the data: from audio to features and tokens, in stages.

Usage:

  # the embedded corpus, synthesized on the spot
  ./prepare.sh
  # your own clips and transcripts, one subfolder per language
  ./prepare.sh --corpus-dir /data/clips
  # manifests of Lhotse, such as those of `lhotse prepare commonvoice`
  ./prepare.sh --manifests "/data/cv_manifests /data/fleurs_manifests"
  # Multilingual LibriSpeech, downloaded
  ./prepare.sh --corpus mls
  # an existing folder in MLS layout
  ./prepare.sh --corpus mls --corpus-dir /data/mls

Stages:

  0  get the corpus
  1  manifests: DATA_DIR/manifests
  2  MUSAN manifests (with --musan-dir)
  3  features, validation, statistics: DATA_DIR/fbank
  4  MUSAN features (with --musan-dir)
  5  SentencePiece: DATA_DIR/lang_bpe_<vocab-size>
  6  index of the training cuts: DATA_DIR/fbank/index
  7  training cuts in tar files (with --store shar): DATA_DIR/fbank/*_shar_train
  8  n-gram models of the tokens (with --ngram-order): DATA_DIR/lang_bpe_<vocab-size>/ngram-<order>-<language>.arpa

Finished stages are skipped: DATA_DIR/.done-<stage>-<language> holds the options of a finished stage. Stages 1, 3
and 7 can be divided among machines: with --executor dask, or with --shard 1/64 to 64/64 in the parts of an array job.
"""

from collections.abc import Sequence

from icefall_pathways.recipe.environment import cpu_defaults, with_defaults
from icefall_pathways.recipe.jobs import print_graph, run_jobs
from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.prepare_config import PrepareConfig as Config
from icefall_pathways.recipe.prepare_config import default_languages, implied_corpus
from icefall_pathways.recipe.programs import read_with_defaults

__all__ = ["Config", "read", "run"]


def read(config_class: type[Config], description: str, argv: Sequence[str], prog: str | None = None) -> Config:
    """Read the options: the folder of a corpus implies the corpus and its languages, unless others are typed."""
    return read_with_defaults(config_class, description, argv, (implied_corpus, default_languages), prog)


def run(config: Config) -> None:
    """Run the selected stages, or print their commands."""
    environ = with_defaults(cpu_defaults())
    jobs = prepare_jobs(config)
    if config.dry_run:
        print_graph(jobs)
    else:
        run_jobs(jobs, 1, environ)
