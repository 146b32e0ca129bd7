"""Options and commands that the run and the study share."""

from dataclasses import dataclass
from pathlib import Path

from icefall_pathways.ranges import PositiveInt
from icefall_pathways.recipe.corpus_options import CorpusOptions
from icefall_pathways.recipe.environment import SINGLE_THREAD, cpu_defaults, with_defaults
from icefall_pathways.recipe.jobs import Job, Step
from icefall_pathways.recipe.prepare import PrepareConfig, prepare_jobs
from icefall_pathways.recipe.programs import option_words, program, read_options

_SCRIPTS = "pruned_transducer_pathways"


@dataclass(frozen=True)
class ExperimentsConfig(CorpusOptions):
    """Options that the run and the study share."""

    encoder_type: str = "emformer"
    """The encoder; see train.py --help."""

    world_size: PositiveInt = 1
    """Number of training processes, one per GPU."""

    num_epochs: PositiveInt = 30
    """Epochs of the dense model."""

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

    train_args: str = ""
    """Additional options for train.py, for the dense model."""

    search_args: str = ""
    """Additional options for prune.py."""

    finetune_args: str = ""
    """Additional options for train.py, for fine-tuning."""

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
    )
    hours = option_words(hours=config.hours) if config.hours else ()
    argv = [*words, *hours, *config.prepare_args.split()]
    return read_options(PrepareConfig, "--prepare-args", argv)


def data_options(config: ExperimentsConfig) -> tuple[str, ...]:
    """Return the options of train.py and prune.py that select the data and the number of processes."""
    return option_words(
        manifest_dir=config.data_dir / "fbank",
        languages=config.languages,
        bpe_model=config.data_dir / f"lang_bpe_{config.vocab_size}" / "bpe.model",
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
        *config.train_args.split(),
    )


def finetune_command(
    config: ExperimentsConfig, dense: Path, exp_dir: Path, num_updates: int, *options: str
) -> tuple[str, ...]:
    """Return the command that fine-tunes the dense model."""
    training = option_words(init_from=dense, exp_dir=exp_dir, num_updates=num_updates)
    return (*program(_SCRIPTS, "train"), *data_options(config), *training, *config.finetune_args.split(), *options)


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
    search = option_words(
        init_from=dense,
        exp_dir=exp_dir,
        prune_for=prune_for,
        sparsity=sparsity,
        prune_rounds=config.rounds,
        updates_per_round=num_updates // config.rounds,
    )
    return (*program(_SCRIPTS, "prune"), *data_options(config), *search, *config.search_args.split(), *options)


def decode_command(config: ExperimentsConfig, script: str, exp_dir: Path, split: str) -> tuple[str, ...]:
    """Return the command that decodes a split with modified beam search; `script` is decode or streaming_decode."""
    options = option_words(exp_dir=exp_dir, decoding_method="modified_beam_search", split=split)
    return (*program(_SCRIPTS, script), *options, *config.decode_args.split())


def report_step(script: str, **options: object) -> Step:
    """Return the step that runs report or study; it has no done mark, so its table is printed every time."""
    return Step((*program(_SCRIPTS, script), *option_words(**options)))
