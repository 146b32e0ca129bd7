"""Options and commands that the run and the study share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from icefall_pathways.ranges import PositiveInt, Range
from icefall_pathways.recipe.corpus_options import CorpusOptions
from icefall_pathways.recipe.environment import SINGLE_THREAD, cpu_defaults, with_defaults
from icefall_pathways.recipe.jobs import Job, Step
from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.prepare_config import PrepareConfig
from icefall_pathways.recipe.programs import is_typed, option_words, program, read_args_option, split_words

_SCRIPTS = "pruned_transducer_pathways"

#: Options of the system dense-language.
LANGUAGE_INPUT = ("--language-input", "1")


@dataclass(frozen=True)
class ExperimentsConfig(CorpusOptions):
    """Options that the run and the study share."""

    encoder_type: str = "emformer"
    """The encoder; see train.py --help."""

    world_size: PositiveInt = 1
    """Number of training processes, one per GPU."""

    num_epochs: PositiveInt = 30
    """Epochs of the dense model, unless --train-args has --num-updates."""

    mask_updates: PositiveInt = 4000
    """Updates of each language's mask search; LAP's takes as many as those of all languages together."""

    finetune_updates: PositiveInt = 40000
    """Updates of fine-tuning from the dense model."""

    rounds: PositiveInt = 4
    """Rounds of training and pruning of a mask search."""

    at_once: PositiveInt = 1
    """Number of mask searches and trainings that run in parallel (CPU)."""

    prepare_args: str = ""
    """Additional options for prepare.sh."""

    synthetic_updates: Annotated[int, Range(0)] = 0
    """Updates on synthetic speech of the same languages, from which the training of the dense model starts. 0: the
    dense model is trained from scratch."""

    synthetic_args: str = "--content transcripts --dev-utterances 20 --test-utterances 1"
    """Additional options for prepare.sh --corpus mini, which synthesizes the speech. --content transcripts speaks the
    training transcripts."""

    train_args: str = ""
    """Additional options for train.py, for the dense model."""

    small_dense_args: str = ""
    """Additional options for train.py, after --train-args, for the system small-dense: a dense model with as many
    parameters as a pathway uses. Set this option too if --train-args changes the size
    of the model."""

    search_args: str = ""
    """Additional options for prune.py."""

    finetune_args: str = ""
    """Additional options for train.py, for fine-tuning."""

    dynamic_args: str = "--prune-every 25"
    """Additional options for train.py, for dynamic pathways."""

    decode_args: str = ""
    """Additional options for decode.py and streaming_decode.py."""

    dry_run: bool = False
    """Print the graph of jobs with their commands and done marks, and run nothing."""

    @property
    def num_languages(self) -> int:
        """Number of languages."""
        return len(self.languages.split())

    @property
    def single_thread(self) -> bool:
        """True if every process has one thread unless OMP_NUM_THREADS is set."""
        return False


def check_systems(selected: str, known: Collection[str]) -> None:
    """Check the value of --systems: names of systems, separated by spaces.

    Raises:
      ValueError: A system is not known, or none is selected.
    """
    if not selected.split():
        raise ValueError(f"--systems is empty: expected some of {' '.join(known)}")
    for system in selected.split():
        if system not in known:
            raise ValueError(f"--systems: unknown system {system!r}; expected some of {' '.join(known)}")


def check_epochs(config: ExperimentsConfig, argv: Sequence[str]) -> None:
    """Check that --num-epochs, if the command line has it, determines the length of the dense training.

    Raises:
      ValueError: It has no effect, because --train-args has a number of updates.
    """
    updates = _find_num_updates(config.train_args)
    if updates and is_typed("num_epochs", argv):
        raise ValueError(
            f"--num-epochs {config.num_epochs} has no effect, because --train-args has --num-updates {updates}: "
            'leave out --num-epochs, or set a number of updates N with --train-args "--num-updates N"'
        )


def environment(config: ExperimentsConfig) -> dict[str, str]:
    """Return the environment of all commands."""
    # A model of the demo's size is as fast with one thread, and two threads wait for each other when cores are shared.
    return with_defaults(cpu_defaults() | (SINGLE_THREAD if config.single_thread else {}))


def data_jobs(config: ExperimentsConfig) -> list[Job]:
    """Return the jobs of the data preparation.

    Raises:
      ValueError: --prepare-args are not valid, or contradict an existing data folder.
    """
    return prepare_jobs(prepare_config(config))


def prepare_config(config: ExperimentsConfig) -> PrepareConfig:
    """Return the options of the data preparation.

    Raises:
      ValueError: --prepare-args are not valid.
    """
    words = option_words(
        corpus=config.corpus,
        corpus_dir=config.corpus_dir,
        languages=config.languages,
        data_dir=config.data_dir,
        vocab_size=config.vocab_size,
        subset=config.subset,
        ngram_order=config.ngram_order,
    )
    hours = option_words(hours=config.hours) if config.hours else ()
    argv = [*words, *hours, *split_words(config.prepare_args)]
    return read_args_option(PrepareConfig, "--prepare-args", "./prepare.sh", argv)


def data_options(config: ExperimentsConfig) -> tuple[str, ...]:
    """Return the options of train.py and prune.py that select the data and the number of processes."""
    return option_words(
        manifest_dir=config.data_dir / "fbank",
        languages=config.languages,
        bpe_model=config.lang_dir / "bpe.model",
        world_size=config.world_size,
    )


def train_dense_command(config: ExperimentsConfig, exp_dir: Path, *options: str) -> tuple[str, ...]:
    """Return the command that trains the dense model."""
    model = option_words(encoder_type=config.encoder_type, num_epochs=config.num_epochs)
    experiment = option_words(exp_dir=exp_dir)
    return (
        *program(_SCRIPTS, "train"),
        *data_options(config),
        *experiment,
        *options,
        *model,
        *split_words(config.train_args),
    )


def small_dense_command(
    config: ExperimentsConfig, exp_dir: Path, more_updates: int, *options: str, ratio: float = 1
) -> tuple[str, ...]:
    """Return the command that trains the small dense model.

    Args:
      config: The options.
      exp_dir: Folder of the experiment.
      more_updates: Updates that other systems take after the dense model.
      options: Additional options.
      ratio: Updates per update of the dense model and of these systems.

    Raises:
      ValueError: The size of the small model, or the number of updates of the dense model, is not given.
    """
    num_updates = option_words(num_updates=round(ratio * (_dense_updates(config) + more_updates)))
    return (*train_dense_command(config, exp_dir), *_small_dense_words(config), *num_updates, *options)


def small_dense_ratio(config: ExperimentsConfig) -> float:
    """Return the multiply-adds of an update of the dense model, relative to those of the small dense model.

    Updates are assumed to have the same audio.

    Raises:
      ValueError: The size of the small model is not given.
    """
    from icefall_pathways.recipe.model_costs import training_multiply_adds  # imports torch, which few commands need

    model = option_words(encoder_type=config.encoder_type)
    dense = (*model, *split_words(config.train_args))
    small = training_multiply_adds((*dense, *_small_dense_words(config)), config.vocab_size)
    return training_multiply_adds(dense, config.vocab_size) / small


def _small_dense_words(config: ExperimentsConfig) -> list[str]:
    if not config.small_dense_args:
        raise ValueError(
            "the system small-dense has no preset here: pass the options of a model with as many parameters as a "
            'pathway uses, such as --small-dense-args "--encoder-dim 256"'
        )
    return split_words(config.small_dense_args)


def _dense_updates(config: ExperimentsConfig) -> int:
    """Return the number of updates of the dense model."""
    updates = _find_num_updates(config.train_args)
    if updates is None or not updates.isdecimal():
        raise ValueError(
            "the system small-dense trains for as many updates as the dense model and its fine-tuning together, and "
            f'--train-args "{config.train_args}" has no number of updates: add --num-updates to it'
        )
    return int(updates)


def _find_num_updates(train_args: str) -> str | None:
    """Return the last value of --num-updates in --train-args; None without it."""
    words = split_words(train_args)
    updates = None
    for index, word in enumerate(words):
        if is_typed("num_updates", [word]):
            updates = word.partition("=")[2] or next(iter(words[index + 1 :]), "")
    return updates


def finetune_command(
    config: ExperimentsConfig, dense: Path, exp_dir: Path, num_updates: int, *options: str
) -> tuple[str, ...]:
    """Return the command that fine-tunes the dense model."""
    experiment = option_words(init_from=dense, exp_dir=exp_dir, num_updates=num_updates)
    arguments = split_words(config.finetune_args)
    return (*program(_SCRIPTS, "train"), *data_options(config), *experiment, *arguments, *options)


def search_command(
    config: ExperimentsConfig,
    dense: Path,
    exp_dir: Path,
    prune_for: str,
    num_updates: int,
    sparsity: str,
    *options: str,
) -> tuple[str, ...]:
    """Return the command that searches masks from the dense model.

    Args:
      config: The options.
      dense: Experiment of the dense model.
      exp_dir: Folder for the masks.
      prune_for: each-language or all-languages.
      num_updates: Updates of each search, divided among the rounds.
      sparsity: Share of pruned entries, as typed.
      options: Additional options.
    """
    rounds = option_words(prune_rounds=config.rounds, updates_per_round=num_updates // config.rounds)
    arguments = split_words(config.search_args)
    return _prune_command(config, dense, exp_dir, prune_for, sparsity, *rounds, *arguments, *options)


def dynamic_options(config: ExperimentsConfig, sparsity: str) -> tuple[str, ...]:
    """Return the options of train.py for dynamic pathways."""
    return (*option_words(prune_method="adaptive", sparsity=sparsity), *split_words(config.dynamic_args))


def random_masks_command(
    config: ExperimentsConfig, dense: Path, exp_dir: Path, prune_for: str, sparsity: str, *options: str
) -> tuple[str, ...]:
    """Return the command that draws random masks; the arguments are those of `search_command`."""
    method = (*split_words(config.search_args), *option_words(prune_method="random"), *options)
    return _prune_command(config, dense, exp_dir, prune_for, sparsity, *method)


def _prune_command(
    config: ExperimentsConfig, dense: Path, exp_dir: Path, prune_for: str, sparsity: str, *options: str
) -> tuple[str, ...]:
    masks = option_words(init_from=dense, exp_dir=exp_dir, prune_for=prune_for, sparsity=sparsity)
    return (*program(_SCRIPTS, "prune"), *data_options(config), *masks, *options)


def decode_command(config: ExperimentsConfig, script: str, exp_dir: Path, split: str) -> tuple[str, ...]:
    """Return the command that decodes a split with modified beam search; `script` is decode or streaming_decode."""
    options = option_words(exp_dir=exp_dir, decoding_method="modified_beam_search", split=split)
    fusion = option_words(ngram_lm=config.ngram_lm) if config.ngram_order else ()
    return (*program(_SCRIPTS, script), *options, *fusion, *split_words(config.decode_args))


def report_step(script: str, **options: object) -> Step:
    """Return the step that runs report or study; it has no done mark, so its table is printed every time."""
    return Step((*program(_SCRIPTS, script), *option_words(**options)))
