"""The recipe, from the corpus to the comparison of the dense model, LAP and pathways."""

from dataclasses import dataclass, replace
from pathlib import Path

from icefall_pathways.experiment import layout
from icefall_pathways.ranges import ShareBelowOne, Stage
from icefall_pathways.recipe import experiments
from icefall_pathways.recipe.experiments import ExperimentsConfig
from icefall_pathways.recipe.jobs import DONE_MARK, Job, Step, print_graph, run_jobs
from icefall_pathways.recipe.programs import as_typed

#: Experiment folder of each system of the comparison, and the name in its table.
SYSTEMS = {"dense-continued": "dense", "lap": "LAP", "pathways": "pathways"}

_TITLES = (
    "prepare the data",
    "train the dense model",
    "search masks",
    "fine-tune the dense model: without masks, with LAP's mask, with pathways",
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

    exp_root: Path = Path("exp")
    """Folder for all experiments."""

    sparsity: ShareBelowOne = 0.7
    """Share of pruned entries."""

    @property
    def single_thread(self) -> bool:
        """True if every process has one thread unless OMP_NUM_THREADS is set."""
        return self.demo


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
    """Return the jobs of the selected stages; a stage starts when the previous one has finished."""
    stages = (
        experiments.data_jobs,
        _dense_jobs,
        _search_jobs,
        _finetune_jobs,
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
            previous = tuple(job.name for job in stage_jobs)
    return jobs


def _training_job(name: str, exp_dir: Path, command: tuple[str, ...], parallel: bool = True) -> Job:
    """Return a job that is finished if its command has succeeded with the same options."""
    options = " ".join(command[command.index("--manifest-dir") :])
    return Job(name, (Step(command, exp_dir / DONE_MARK, options),), parallel=parallel, log_dir=exp_dir)


def _dense_jobs(config: RunConfig) -> list[Job]:
    exp_dir = config.exp_root / "dense"
    return [_training_job("dense", exp_dir, experiments.train_dense_command(config, exp_dir), parallel=False)]


def _search_jobs(config: RunConfig) -> list[Job]:
    return [
        _search_job(config, "masks-lap", "all-languages", config.num_languages * config.mask_updates),
        _search_job(config, "masks-pathways", "each-language", config.mask_updates),
    ]


def _search_job(config: RunConfig, name: str, prune_for: str, num_updates: int) -> Job:
    dense, exp_dir = config.exp_root / "dense", config.exp_root / name
    command = experiments.search_command(config, dense, exp_dir, prune_for, num_updates, as_typed(config.sparsity))
    return _training_job(name, exp_dir, command)


def _finetune_jobs(config: RunConfig) -> list[Job]:
    return [
        _finetune_job(config, "dense-continued"),
        _finetune_job(config, "lap", "--masks", str(config.exp_root / "masks-lap" / layout.MASKS_FILE)),
        _finetune_job(config, "pathways", "--masks", str(config.exp_root / "masks-pathways" / layout.MASKS_FILE)),
    ]


def _finetune_job(config: RunConfig, name: str, *options: str) -> Job:
    dense, exp_dir = config.exp_root / "dense", config.exp_root / name
    command = experiments.finetune_command(config, dense, exp_dir, config.finetune_updates, *options)
    return _training_job(name, exp_dir, command)


def _offline_decoding_jobs(config: RunConfig) -> list[Job]:
    return _decoding_jobs(config, "decode")


def _streaming_decoding_jobs(config: RunConfig) -> list[Job]:
    return _decoding_jobs(config, "streaming_decode")


def _decoding_jobs(config: RunConfig, script: str) -> list[Job]:
    """Return the decoding jobs, which are not parallel because they measure real-time factors."""
    commands = {name: experiments.decode_command(config, script, config.exp_root / name, "test") for name in SYSTEMS}
    prefix = script.replace("_", "-")
    return [Job(f"{prefix}-{name}", (Step(command),)) for name, command in commands.items()]


def _comparison_jobs(config: RunConfig) -> list[Job]:
    systems = " ".join(f"'{label}={config.exp_root / name}'" for name, label in SYSTEMS.items())
    step = experiments.report_step("report", systems=systems, output=config.exp_root / "report.html")
    return [Job("report", (step,))]
