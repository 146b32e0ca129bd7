"""Run the whole recipe in stages: data, dense model, masks, pathways, decoding, report.

Usage:

  # the embedded corpus and a model for two cores without GPU
  ./run.sh --demo 1
  # real speech: spoken phrases in nine languages, on two cores without GPU
  ./run.sh --preset stamps
  # Multilingual LibriSpeech on eight GPUs
  ./run.sh --world-size 8 --languages "en fr it nl" --corpus mls --corpus-dir /data/mls
  # your own clips and transcripts, one subfolder per language
  ./run.sh --corpus-dir /data/clips
  # further baselines
  ./run.sh --demo 1 --systems "dense-continued dense-language small-dense lap pathways-random pathways"
  # print the jobs and their commands
  ./run.sh --demo 1 --dry-run 1

Stages:

  0  prepare the data (prepare.sh)
  1  train the dense model; with --synthetic-updates, on synthetic speech first
  2  search masks: one for all languages (LAP), and one per language (pathways)
  3  train the systems of --systems, by default from the dense model with the same number of updates: without masks,
     with LAP's mask, with pathways
  4  decode offline
  5  decode chunk by chunk
  6  compare: tables of error rates and costs, and EXP_ROOT/report.html

Run the same command again to resume; finished trainings are skipped. With --demo 1, --preset, your own clips or another
encoder, the defaults below change: add --help to see them. They include --train-args, --search-args, --finetune-args
and others that end in -args, to which yours are appended: --train-args "--num-updates 1000" changes only this option.
An option of a preset cannot be removed, only set to another value.
"""

from collections.abc import Sequence

from icefall_pathways.recipe.experiments import check_epochs
from icefall_pathways.recipe.presets import corpus_preset, demo_preset, implied_corpus, named_preset
from icefall_pathways.recipe.programs import read_with_defaults
from icefall_pathways.recipe.run import RunConfig as Config
from icefall_pathways.recipe.run import run

__all__ = ["Config", "read", "run"]


def read(config_class: type[Config], description: str, argv: Sequence[str], prog: str | None = None) -> Config:
    """Read the options: what is typed takes precedence over the presets and the languages that it selects."""
    select = (named_preset, demo_preset, implied_corpus, corpus_preset)
    config = read_with_defaults(config_class, description, argv, select, prog)
    check_epochs(config, argv)
    return config
