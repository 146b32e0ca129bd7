"""The recipe, from the corpus to the comparison of the dense model, LAP and pathways."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from icefall_pathways.experiment import layout
from icefall_pathways.files import read_json
from icefall_pathways.languages import codes_of, normalize_languages
from icefall_pathways.ranges import ShareBelowOne, Stage
from icefall_pathways.recipe import experiments, synthetic
from icefall_pathways.recipe.args_options import check_args_options
from icefall_pathways.recipe.experiments import ExperimentsConfig
from icefall_pathways.recipe.jobs import DONE_MARK, Job, Step, print_graph, run_jobs
from icefall_pathways.recipe.programs import as_typed
from icefall_pathways.reporting.systems import RUN_SYSTEMS, SYSTEMS

# Systems with masks, and the languages that share a mask.
_PRUNE_FOR = {
    "lap-random": "all-languages",
    "lap": "all-languages",
    "pathways-random": "each-language",
    "pathways": "each-language",
}

_TITLES = (
    "prepare the data",
    "train the dense model",
    "search masks",
    "train the compared systems",
    "decode offline",
    "decode chunk by chunk",
    "compare",
)


@dataclass(frozen=True)
class RunConfig(ExperimentsConfig):
    """Options of the run."""

    stage: Stage = 0
    """First stage to run."""

    stop_stage: Stage = 100
    """Last stage to run."""

    demo: bool = False
    """Use the settings of `make demo` as defaults: the embedded corpus and a model for two cores without GPU."""

    preset: Literal["", "demo", "stamps"] = ""
    """demo: the same as --demo 1; stamps: the same as --corpus stamps, real speech. Empty: the corpus decides."""

    exp_root: Path = Path("exp")
    """Folder for all experiments."""

    sparsity: ShareBelowOne = 0.7
    """Share of pruned entries."""

    systems: str = "dense-continued lap pathways"
    """Systems to compare, separated by spaces, of dense-continued dense-language small-dense lap-random lap
    pathways-random pathways dynamic. dense-language is fine-tuned with --language-input 1. small-dense trains from
    scratch, for as many updates as the dense model and its fine-tuning together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        experiments.check_systems(self.systems, RUN_SYSTEMS)

    @property
    def single_thread(self) -> bool:
        """True if every process has one thread unless OMP_NUM_THREADS is set."""
        return self.demo or self.corpus == "stamps"

    @property
    def selected_systems(self) -> list[str]:
        """Folders of the selected systems, in the order of the table."""
        return [name for name in RUN_SYSTEMS if name in self.systems.split()]


def run(config: RunConfig) -> None:
    """Run the selected stages, or print their jobs.

    Raises:
      ValueError: An option is not valid, or a job failed.
    """
    jobs = run_graph(config)
    if config.dry_run:
        print_graph(jobs)
    else:
        run_jobs(jobs, config.at_once, experiments.environment(config))


def run_graph(config: RunConfig) -> list[Job]:
    """Return the jobs of the selected stages; a stage starts when the previous one has finished.

    Raises:
      ValueError: --preset contradicts --demo or --corpus, an -args option is not valid, or a system needs options that
        are not given.
    """
    _check_preset(config)
    check_args_options(config)
    stages = (
        _data_jobs,
        _dense_jobs,
        _search_jobs,
        _system_jobs,
        _offline_decoding_jobs,
        _streaming_decoding_jobs,
        _comparison_jobs,
    )
    jobs: list[Job] = []
    previous: tuple[str, ...] = ()
    for index, (title, make_jobs) in enumerate(zip(_TITLES, stages, strict=True)):
        if config.stage <= index <= config.stop_stage:
            heading = f"\n=== Stage {index}: {title}"
            stage_jobs = [replace(job, after=(*job.after, *previous), heading=heading) for job in make_jobs(config)]
            jobs += stage_jobs
            previous = tuple(job.name for job in stage_jobs) or previous
    return jobs


def _training_job(config: RunConfig, name: str, exp_dir: Path, command: tuple[str, ...], parallel: bool = True) -> Job:
    """Return a job that is finished if its command has succeeded with the same options."""
    _check_languages(config, exp_dir)
    options = " ".join(command[command.index("--manifest-dir") :])
    return Job(name, (Step(command, exp_dir / DONE_MARK, options),), parallel=parallel, log_dir=exp_dir)


def _check_languages(config: RunConfig, exp_dir: Path) -> None:
    """Raise a ValueError if a training on other languages has saved checkpoints in the folder."""
    file = exp_dir / layout.CONFIG_FILE
    if not (file.exists() and layout.has_checkpoints(exp_dir)):
        return
    stored, languages = normalize_languages(read_json(file)["data"]["languages"]), codes_of(config.languages)
    if list(stored) != languages:
        trained = " ".join(stored)
        raise ValueError(
            f"{exp_dir} holds a training on {trained}, and this run is on {' '.join(languages)}: use another "
            f'--exp-root to train on these from scratch, or --languages "{trained}" to continue; docs/guide/pruning.md '
            "describes how to add a language to trained pathways"
        )


def _check_preset(config: RunConfig) -> None:
    """Raise a ValueError if --demo or --corpus selects other settings than --preset, which would have no effect."""
    selected = "demo" if config.demo else config.corpus
    if config.preset and config.preset != selected:
        raise ValueError(f"--preset {config.preset} has no effect with the settings of {selected}: use one of them")


def _data_jobs(config: RunConfig) -> list[Job]:
    jobs = experiments.data_jobs(config)
    return [*jobs, *synthetic.data_jobs(config, after=tuple(job.name for job in jobs))]


def _dense_jobs(config: RunConfig) -> list[Job]:
    exp_dir = config.exp_root / "dense"
    return _from_scratch_jobs(config, exp_dir, experiments.train_dense_command(config, exp_dir), parallel=False)


def _from_scratch_jobs(config: RunConfig, exp_dir: Path, command: tuple[str, ...], parallel: bool = True) -> list[Job]:
    """Return the jobs that train a model from scratch, each after the previous one."""
    jobs: list[Job] = []
    for folder, stage_command in synthetic.training_stages(config, exp_dir, command).items():
        job = _training_job(config, folder.name, folder, stage_command, parallel)
        jobs.append(replace(job, after=tuple(previous.name for previous in jobs)))
    return jobs


def _search_jobs(config: RunConfig) -> list[Job]:
    return [_search_job(config, name) for name in config.selected_systems if name in _PRUNE_FOR]


def _search_job(config: RunConfig, system: str) -> Job:
    dense, exp_dir = config.exp_root / "dense", config.exp_root / f"masks-{system}"
    prune_for, sparsity = _PRUNE_FOR[system], as_typed(config.sparsity)
    if system.endswith("-random"):
        command = experiments.random_masks_command(config, dense, exp_dir, prune_for, sparsity)
    else:
        num_updates = config.mask_updates * (config.num_languages if prune_for == "all-languages" else 1)
        command = experiments.search_command(config, dense, exp_dir, prune_for, num_updates, sparsity)
    return _training_job(config, exp_dir.name, exp_dir, command)


def _system_jobs(config: RunConfig) -> list[Job]:
    return [job for name in config.selected_systems for job in _jobs_of_system(config, name)]


def _jobs_of_system(config: RunConfig, system: str) -> list[Job]:
    dense, exp_dir, num_updates = config.exp_root / "dense", config.exp_root / system, config.finetune_updates
    if system == "small-dense":
        return _from_scratch_jobs(config, exp_dir, experiments.small_dense_command(config, exp_dir, num_updates))
    options: tuple[str, ...] = ()
    if system in _PRUNE_FOR:
        options = ("--masks", str(config.exp_root / f"masks-{system}" / layout.MASKS_FILE))
    elif system == "dense-language":
        options = experiments.LANGUAGE_INPUT
    elif system == "dynamic":
        options = experiments.dynamic_options(config, as_typed(config.sparsity))
    command = experiments.finetune_command(config, dense, exp_dir, num_updates, *options)
    return [_training_job(config, system, exp_dir, command)]


def _offline_decoding_jobs(config: RunConfig) -> list[Job]:
    return _decoding_jobs(config, "decode")


def _streaming_decoding_jobs(config: RunConfig) -> list[Job]:
    return _decoding_jobs(config, "streaming_decode")


def _decoding_jobs(config: RunConfig, script: str) -> list[Job]:
    """Return the decoding jobs, which are not parallel because they measure real-time factors."""
    names = config.selected_systems
    commands = {name: experiments.decode_command(config, script, config.exp_root / name, "test") for name in names}
    prefix = script.replace("_", "-")
    return [Job(f"{prefix}-{name}", (Step(command),)) for name, command in commands.items()]


def _comparison_jobs(config: RunConfig) -> list[Job]:
    systems = shlex.join(f"{SYSTEMS[name]}={config.exp_root / name}" for name in config.selected_systems)
    step = experiments.report_step("report", systems=systems, output=config.exp_root / "report.html")
    return [Job("report", (step,))]
