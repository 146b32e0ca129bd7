"""The study: all ways to obtain pathways, at several sparsities, over several seeds, with equal budgets."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from icefall_pathways.corpora.registry import CorpusName
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, read_text
from icefall_pathways.languages import parse_languages
from icefall_pathways.ranges import SEEDS, Range, parse_numbers
from icefall_pathways.recipe import experiments, synthetic
from icefall_pathways.recipe.args_options import check_args_options
from icefall_pathways.recipe.experiments import ExperimentsConfig
from icefall_pathways.recipe.jobs import DONE_MARK, Job, Step, print_graph, run_jobs
from icefall_pathways.reporting.systems import STUDY_SYSTEMS

#: Options that must not change within a study, because its results would not be comparable.
_SETTINGS = (
    *("corpus", "languages", "vocab_size", "encoder_type", "num_epochs", "mask_updates", "finetune_updates", "rounds"),
    *("hours", "budget", "prepare_args", "synthetic_updates", "synthetic_args", "train_args", "small_dense_args"),
    *("search_args", "finetune_args", "dynamic_args", "decode_args", "ngram_order", "data_dir", "corpus_dir", "subset"),
)
_SPARSITIES = Range(0, 1, open_minimum=True, open_maximum=True)
_SPLITS = ("dev", "test")


@dataclass(frozen=True)
class StudyConfig(ExperimentsConfig):
    """Options of the study."""

    corpus: CorpusName = "mini"
    """mini: the embedded corpus, with the settings of the demo; stamps: phrases of Tux Paint, real speech, with the
    settings of run.sh --preset stamps; mls: Multilingual LibriSpeech or its layout."""

    seeds: str = "1 2 3"
    """Seeds, separated by spaces; each has its own dense model."""

    sparsities: str = "0.7"
    """Shares of pruned entries, separated by spaces."""

    systems: str = "dense-continued lap lsp pathways-imp pathways-lth dynamic"
    """Systems, separated by spaces, of dense-continued dense-language small-dense lap-random lap lsp
    pathways-random pathways-imp pathways-lth dynamic."""

    budget: Literal["updates", "multiply-adds"] = "multiply-adds"
    """Costs that are equal for all systems. updates: --finetune-updates of training after the dense model, and searches
    are free; multiply-adds: the multiply-adds of searches and trainings together, as many as pathways-imp takes."""

    splits: str = "dev test"
    """Splits to decode, chunk by chunk with modified beam search."""

    study_dir: Path = Path("exp/study")
    """Folder for all results; its study.md holds the tables."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Folders have canonical numbers, so that .7 and 0.70 are the same experiment; the report reads no exponents.
        self._set("seeds", [str(seed) for seed in parse_numbers("--seeds", self.seeds, int, SEEDS, distinct=True)])
        sparsities = parse_numbers("--sparsities", self.sparsities, float, _SPARSITIES, distinct=True)
        self._set("sparsities", [f"{sparsity:.9f}".rstrip("0") for sparsity in sparsities])
        self._set("splits", list(dict.fromkeys(self.splits.split())))
        experiments.check_systems(self.systems, STUDY_SYSTEMS)
        if not self.splits or not set(self.splits.split()) <= set(_SPLITS):
            raise ValueError(f"--splits is {self.splits!r}: expected some of {' '.join(_SPLITS)}")
        languages = parse_languages(self.languages)
        if "lsp" in self.systems.split() and self.finetune_updates < len(languages):
            raise ValueError(
                f"--finetune-updates is {self.finetune_updates}: expected at least {len(languages)}, an update for the "
                "model of each language in the system lsp"
            )

    def _set(self, name: str, words: list[str]) -> None:
        object.__setattr__(self, name, " ".join(words))

    @property
    def single_thread(self) -> bool:
        """True if every process has one thread unless OMP_NUM_THREADS is set."""
        return self.corpus in ("mini", "stamps")

    @property
    def updates_without_search(self) -> int:
        """Updates after the dense model, of systems that do not search masks."""
        if self.budget == "updates":
            return self.finetune_updates
        return self.num_languages * self.mask_updates + self.finetune_updates


def run(config: StudyConfig) -> None:
    """Run the study, or print its jobs.

    Raises:
      ValueError: An option is not valid, the folder holds a study with other settings, or a job failed.
    """
    jobs = study_graph(config)
    if config.dry_run:
        print_graph(jobs)
        return
    keep_settings(config)
    run_jobs(jobs, config.at_once, experiments.environment(config))


def study_graph(config: StudyConfig) -> list[Job]:
    """Return the jobs of a study."""
    check_args_options(config, is_study=True)
    jobs = experiments.data_jobs(config)
    jobs += synthetic.data_jobs(config, after=tuple(job.name for job in jobs))
    prepared = tuple(job.name for job in jobs)
    for seed in config.seeds.split():
        jobs.append(replace(_Seed(config, seed).dense_job(), after=prepared))
    for seed in config.seeds.split():
        jobs += _Seed(config, seed).dense_system_jobs()
    for sparsity in config.sparsities.split():
        for seed in config.seeds.split():
            jobs += _Seed(config, seed).system_jobs(sparsity)
    split = "test" if "test" in config.splits.split() else config.splits
    output = config.study_dir / "study.md"
    step = experiments.report_step("study", study_dir=config.study_dir, split=split, output=output)
    return [*jobs, Job("tables", (step,), tuple(job.name for job in jobs), heading="")]


def keep_settings(config: StudyConfig) -> None:
    """Store the settings of a study in its folder; if a training has started, check that it had the same.

    Raises:
      ValueError: The folder holds a study with other settings; the message lists the differences.
    """
    file = config.study_dir / "settings.txt"
    settings = {name: " ".join(str(getattr(config, name)).split()) for name in _SETTINGS}
    # The studies of earlier versions had this budget, and no synthetic speech.
    stored = {"budget": "multiply-adds", "synthetic_updates": "0"} | _read_settings(file) if file.exists() else {}
    # Earlier versions stored fewer settings; those that are missing cannot be checked.
    changed = [
        f"{name}: now {value!r}, stored {stored[name]!r}"
        for name, value in settings.items()
        if value != stored.get(name, value)
    ]
    if changed and any(layout.has_checkpoints(folder) for folder in config.study_dir.glob("seed-*/**/")):
        raise ValueError(
            f"{config.study_dir} was started with other settings ({'; '.join(changed)}): use the same settings, or "
            "another --study-dir"
        )
    if stored != settings:
        with atomic_write(file) as temporary:
            temporary.write_text("".join(f'{name}="{value}"\n' for name, value in settings.items()), encoding="utf-8")


def _read_settings(file: Path) -> dict[str, str]:
    """Read NAME="VALUE" lines, also in the format of bash's `declare`, which earlier versions wrote."""
    lines = re.findall(r"""^(?:declare \S+ )?(\w+)=\$?(["'])(.*?)\2$""", read_text(file), re.M | re.S)
    return {name: " ".join(value.replace(r"\n", " ").split()) for name, _, value in lines}


class _Seed:
    """The jobs of one seed."""

    def __init__(self, config: StudyConfig, seed: str) -> None:
        self._config = config
        self._seed = seed
        self._name = f"seed-{seed}"
        self._folder = config.study_dir / self._name
        self._dense = self._folder / "dense"

    def dense_job(self) -> Job:
        """Return the job that trains the dense model."""
        command = experiments.train_dense_command(self._config, self._dense, "--seed", self._seed)
        heading = f"Dense models, seeds {self._config.seeds}"
        return self._job("dense", list(self._from_scratch(command, self._dense)), heading)

    def dense_system_jobs(self) -> list[Job]:
        """Return the jobs of the selected systems without masks."""
        systems, jobs = self._config.systems.split(), []
        for system, options in (("dense-continued", ()), ("dense-language", experiments.LANGUAGE_INPUT)):
            if system in systems:
                steps = self._train(self._folder / system, self._config.updates_without_search, *options)
                jobs.append(self._system_job(system, steps))
        if "small-dense" in systems:
            jobs.append(self._system_job("small-dense", self._small_dense_steps()))
        return jobs

    def system_jobs(self, sparsity: str) -> list[Job]:
        """Return the jobs of the selected systems at a sparsity."""
        systems, jobs = self._config.systems.split(), []
        name = f"sparsity-{sparsity}"
        # LSP uses the masks of pathways-imp, so one job trains both.
        if "pathways-imp" in systems or "lsp" in systems:
            jobs.append(self._system_job(f"{name}-imp", self._imp_steps(sparsity)))
        for system, prune_for in (("lap-random", "all-languages"), ("pathways-random", "each-language")):
            if system in systems:
                jobs.append(self._system_job(f"{name}-{system}", self._random_steps(sparsity, system, prune_for)))
        for system, make_steps in (("lap", self._lap_steps), ("pathways-lth", self._lth_steps)):
            if system in systems:
                jobs.append(self._system_job(f"{name}-{system}", make_steps(sparsity)))
        if "dynamic" in systems:
            jobs.append(self._system_job(f"{name}-dynamic", self._dynamic_steps(sparsity)))
        return jobs

    def _system_job(self, name: str, steps: Iterator[Step]) -> Job:
        config = self._config
        heading = f"Systems: {config.systems}; sparsities {config.sparsities}; equal {config.budget}"
        return replace(self._job(name, list(steps), heading), after=(f"{self._name}-dense",))

    def _job(self, name: str, steps: list[Step], heading: str) -> Job:
        name = f"{self._name}-{name}"
        log = self._config.study_dir / "log" / f"{name}.log"
        return Job(name, tuple(steps), parallel=True, heading=heading, log=log)

    def _small_dense_steps(self) -> Iterator[Step]:
        config, folder = self._config, self._folder / "small-dense"
        ratio = experiments.small_dense_ratio(config) if config.budget == "multiply-adds" else 1
        options = self._seed_and_checkpoints(round(ratio * config.updates_without_search))
        command = experiments.small_dense_command(config, folder, config.updates_without_search, *options, ratio=ratio)
        yield from self._from_scratch(command, folder, ratio)
        yield from self._decode(folder)

    def _random_steps(self, sparsity: str, system: str, prune_for: str) -> Iterator[Step]:
        exp_dir = self._folder / f"sparsity-{sparsity}" / "masks" / system
        seed = ("--seed", self._seed)
        command = experiments.random_masks_command(self._config, self._dense, exp_dir, prune_for, sparsity, *seed)
        yield Step(command, exp_dir / DONE_MARK)
        folder, masks = self._folder / f"sparsity-{sparsity}" / system, self._masks(sparsity, system)
        yield from self._train(folder, self._config.updates_without_search, "--masks", masks)

    def _lap_steps(self, sparsity: str) -> Iterator[Step]:
        config = self._config
        yield self._search(sparsity, "lap", "all-languages", config.num_languages * config.mask_updates, "imp")
        folder = self._folder / f"sparsity-{sparsity}" / "lap"
        yield from self._train(folder, config.finetune_updates, "--masks", self._masks(sparsity, "lap"))

    def _imp_steps(self, sparsity: str) -> Iterator[Step]:
        config, folder = self._config, self._folder / f"sparsity-{sparsity}"
        masks = ("--masks", self._masks(sparsity, "imp"))
        yield self._search(sparsity, "imp", "each-language", config.mask_updates, "imp")
        if "pathways-imp" in config.systems.split():
            yield from self._train(folder / "pathways-imp", config.finetune_updates, *masks)
        if "lsp" in config.systems.split():
            num_updates = config.finetune_updates // config.num_languages
            for language in config.languages.split():
                yield from self._train(folder / "lsp" / language, num_updates, *masks, "--languages", language)

    def _lth_steps(self, sparsity: str) -> Iterator[Step]:
        config = self._config
        yield self._search(sparsity, "lth", "each-language", config.mask_updates, "lth")
        folder = self._folder / f"sparsity-{sparsity}" / "pathways-lth"
        yield from self._train(folder, config.finetune_updates, "--masks", self._masks(sparsity, "lth"))

    def _dynamic_steps(self, sparsity: str) -> Iterator[Step]:
        pruning = experiments.dynamic_options(self._config, sparsity)
        folder = self._folder / f"sparsity-{sparsity}" / "dynamic"
        yield from self._train(folder, self._config.updates_without_search, *pruning)

    def _search(self, sparsity: str, name: str, prune_for: str, num_updates: int, method: str) -> Step:
        exp_dir = self._folder / f"sparsity-{sparsity}" / "masks" / name
        options = ("--prune-method", method, "--seed", self._seed)
        command = experiments.search_command(
            self._config, self._dense, exp_dir, prune_for, num_updates, sparsity, *options
        )
        return Step(command, exp_dir / DONE_MARK)

    def _masks(self, sparsity: str, name: str) -> str:
        return str(self._folder / f"sparsity-{sparsity}" / "masks" / name / layout.MASKS_FILE)

    def _train(self, exp_dir: Path, num_updates: int, *options: str) -> Iterator[Step]:
        """Yield the steps that train from the dense model and decode."""
        options = (*self._seed_and_checkpoints(num_updates), *options)
        command = experiments.finetune_command(self._config, self._dense, exp_dir, num_updates, *options)
        yield Step(command, exp_dir / DONE_MARK)
        yield from self._decode(exp_dir)

    def _seed_and_checkpoints(self, num_updates: int) -> tuple[str, ...]:
        # Two checkpoints, a quarter of the training apart: decoding averages the weights between them.
        period = 1 if num_updates < 80 else 10
        save_every = max(num_updates // 4 // period * period, 1)
        seed = ("--seed", self._seed)
        return (*seed, "--average-period", str(period), "--save-every-n", str(save_every), "--keep-last-k", "2")

    def _from_scratch(self, command: tuple[str, ...], exp_dir: Path, ratio: float = 1) -> Iterator[Step]:
        for folder, stage_command in synthetic.training_stages(self._config, exp_dir, command, ratio).items():
            yield Step(stage_command, folder / DONE_MARK)

    def _decode(self, exp_dir: Path) -> Iterator[Step]:
        for split in self._config.splits.split():
            decode = experiments.decode_command(self._config, "streaming_decode", exp_dir, split)
            yield Step(decode, exp_dir / f"{DONE_MARK}-{split}")
