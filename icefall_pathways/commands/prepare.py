"""Prepare the data: from audio to features and tokens, in stages.

Usage:

  # the embedded corpus, synthesized on the spot
  ./prepare.sh
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

Finished stages are skipped: DATA_DIR/.done-<stage>-<language> holds the options of a finished stage. Stages 1 and 3 can
be divided among machines: with --executor dask, or with --shard 1/64 to 64/64 in the parts of an array job.
"""

from icefall_pathways.recipe.environment import cpu_defaults, with_defaults
from icefall_pathways.recipe.jobs import print_graph, run_jobs
from icefall_pathways.recipe.prepare import PrepareConfig as Config
from icefall_pathways.recipe.prepare import prepare_jobs

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Run the selected stages, or print their commands."""
    environ = with_defaults(cpu_defaults())
    jobs = prepare_jobs(config)
    if config.dry_run:
        print_graph(jobs)
    else:
        run_jobs(jobs, 1, environ)
