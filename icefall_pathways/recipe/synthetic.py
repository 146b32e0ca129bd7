"""Training on synthetic speech of the same languages, before the training on real speech."""

from dataclasses import replace
from pathlib import Path

from icefall_pathways.corpora.mini_text import TRANSCRIPTS
from icefall_pathways.corpora.registry import get_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import parse_languages
from icefall_pathways.recipe.args_options import reject_options
from icefall_pathways.recipe.experiments import ExperimentsConfig
from icefall_pathways.recipe.jobs import Job
from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.prepare_config import PrepareConfig
from icefall_pathways.recipe.programs import option_words, read_args_option, split_words

_LAST_STAGE = 3  # features: the tokenizer is that of the real speech, and training writes the index


def data_jobs(config: ExperimentsConfig, after: tuple[str, ...]) -> list[Job]:
    """Return the jobs that synthesize the speech and compute its features; none if --synthetic-updates is 0.

    Args:
      config: The options.
      after: Names of the jobs that prepare the real speech, whose transcripts may be synthesized.

    Raises:
      ValueError: A language has no voice, or --synthetic-args are not valid or contradict an existing data folder.
    """
    if not config.synthetic_updates:
        return []
    try:
        get_corpus("mini").check_languages(parse_languages(config.languages))
    except CorpusError as error:
        raise ValueError(
            f"--synthetic-updates {config.synthetic_updates} needs a voice for every language ({error}): leave the "
            "option out, or select languages with --languages"
        ) from error
    folder = _data_dir(config)
    fixed = {
        "corpus": "mini",
        "corpus_dir": folder / "corpus",
        "languages": config.languages,
        "data_dir": folder,
        "stop_stage": _LAST_STAGE,
    }
    reject_options("--synthetic-args", config.synthetic_args, fixed)
    argv = [*option_words(**fixed), *split_words(config.synthetic_args)]
    prepare = read_args_option(PrepareConfig, "--synthetic-args", "./prepare.sh", argv)
    if TRANSCRIPTS in prepare.content.split():
        prepare = replace(prepare, transcripts_dir=str(config.data_dir / "manifests"))
    return [_rename(job, after) for job in prepare_jobs(prepare)]


def training_stages(
    config: ExperimentsConfig, exp_dir: Path, command: tuple[str, ...], ratio: float = 1
) -> dict[Path, tuple[str, ...]]:
    """Return the training commands of a model by experiment folder, in the order of execution.

    With --synthetic-updates, the first one trains on the synthetic speech, and the second one starts from its model.

    Args:
      config: The options.
      exp_dir: Experiment folder of the model.
      command: Command that trains the model from scratch on the real speech.
      ratio: Updates on synthetic speech, relative to --synthetic-updates.
    """
    if not config.synthetic_updates:
        return {exp_dir: command}
    first, updates = exp_dir.with_name(f"{exp_dir.name}-synthetic"), round(ratio * config.synthetic_updates)
    options = option_words(manifest_dir=_data_dir(config) / "fbank", exp_dir=first, num_updates=updates)
    return {first: (*command, *options), exp_dir: (*command, *option_words(init_from=first))}


def _data_dir(config: ExperimentsConfig) -> Path:
    return config.data_dir / "synthetic"


def _rename(job: Job, after: tuple[str, ...]) -> Job:
    """Return a job whose name differs from that of the same job for the real speech; `after` precede the first one."""
    previous = tuple(f"synthetic-{name}" for name in job.after)
    return replace(
        job, name=f"synthetic-{job.name}", after=previous or after, heading=f"Synthetic speech: {job.heading}"
    )
