"""Results of a study over systems, sparsities and seeds, in the folders that run_study.sh writes.

STUDY/seed-1/dense                               the dense model that all systems with this seed start from
STUDY/seed-1/dense-continued                     the dense model, trained for as many updates as every other system
STUDY/seed-1/dense-language                      the same with the language as an input
STUDY/seed-1/small-dense                         a dense model with as many parameters as a pathway uses
STUDY/seed-1/sparsity-0.7/<system>               a system with masks
STUDY/seed-1/sparsity-0.7/lsp/<language code>    language-specific pruning: one model per language
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from icefall_pathways.decoding.scoring import Utterance
from icefall_pathways.decoding.significance import bootstrap_p_value
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.result_summary import read_summary
from icefall_pathways.files import atomic_write
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.ranges import Options
from icefall_pathways.reporting import plots
from icefall_pathways.reporting.comparison import AVERAGE, Run, compare_runs, newest_results
from icefall_pathways.reporting.costs import NOTE, TITLES, Costs, join_languages, mean_costs, read_costs
from icefall_pathways.reporting.results import newest_summary, rate_title
from icefall_pathways.reporting.systems import DENSE_SYSTEMS, STUDY_SYSTEMS, SYSTEMS

# Systems with which the others are compared, in the order of the columns.
_BASELINES = ("lap", "dense-continued")
_DIFFERENCES = ("difference (95 % interval)", "relative", "p", "seeds")
# The system that the last table compares with every other one.
_PATHWAYS = "pathways-imp"


@dataclass(frozen=True)
class StudyConfig(Options):
    """Options of the study report."""

    study_dir: Path = Path("exp/study")
    """Folder of the study."""

    method: str = "streaming/modified_beam_search"
    """Folder of the results in each experiment folder, such as greedy_search."""

    split: str = "test"
    """Decoded split, test or dev."""

    output: Path = Path("exp/study/study.md")
    """Markdown file for the tables; the plot of error rates, by system or over sparsity, is written next to it, as
    .png."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix == ".png":
            raise ValueError(f"--output is {self.output}: expected a Markdown file, the plot gets its name with .png")


@dataclass(frozen=True)
class StudyResult:
    """Result of one system at one sparsity with one seed.

    Attributes:
      system: One of `STUDY_SYSTEMS`.
      sparsity: 0 for a system without masks.
      seed: Seed of the dense model, the masks and the training.
      folders: Experiment folders: one per language for LSP, one for other systems.
      wer: Word error rate in percent, by language code.
      costs: Updates and multiply-adds.
    """

    system: str
    sparsity: float
    seed: int
    folders: tuple[Path, ...]
    wer: dict[str, float]
    costs: Costs

    @property
    def average(self) -> float:
        """Mean word error rate over the languages."""
        return fmean(self.wer.values())


def gather(config: StudyConfig) -> list[StudyResult]:
    """Read all available results.

    Raises:
      ValueError: There are none, or systems were decoded in different languages.
    """
    results: list[StudyResult] = []
    for seed, folder in _numbered(config.study_dir, "seed"):
        for system in DENSE_SYSTEMS:
            results += list(_read(config, system, 0.0, int(seed), folder / system))
        for sparsity, systems in _numbered(folder, "sparsity"):
            for system in (name for name in STUDY_SYSTEMS if name not in DENSE_SYSTEMS):
                results += list(_read(config, system, sparsity, int(seed), systems / system))
    if not results:
        raise ValueError(f"nothing in {config.study_dir} has been decoded on {config.split}: run ./run_study.sh first")
    return _complete(results)


def _complete(results: list[StudyResult]) -> list[StudyResult]:
    """Return the results without those of LSP that lack languages, whose models are not trained yet.

    Raises:
      ValueError: Another system lacks a language.
    """
    expected = max(results, key=lambda result: len(result.wer))
    for result in results:
        if result.wer.keys() != expected.wer.keys() and result.system != "lsp":
            raise ValueError(
                f"{result.folders[0]} was decoded in {' '.join(result.wer)}, {expected.folders[0]} in "
                f"{' '.join(expected.wer)}: decode both in the same languages"
            )
    return [result for result in results if result.wer.keys() == expected.wer.keys()]


def _numbered(folder: Path, prefix: str) -> Iterator[tuple[float, Path]]:
    """Yield the folders PREFIX-<number> with their numbers, in ascending order.

    Raises:
      ValueError: Two folders have the same number.
    """
    folders: dict[float, Path] = {}
    for path in sorted(folder.glob(f"{prefix}-*")):
        if match := re.fullmatch(rf"{prefix}-(\d*\.?\d+)", path.name):
            value = float(match[1])
            if value in folders:
                raise ValueError(f"{folders[value]} and {path} are of the same {prefix}: remove one")
            folders[value] = path
    yield from sorted(folders.items())


def _read(config: StudyConfig, system: str, sparsity: float, seed: int, folder: Path) -> Iterator[StudyResult]:
    """Yield the result of a system if it is complete: LSP has one model per language."""
    models = sorted(path for path in folder.iterdir() if path.is_dir()) if system == "lsp" and folder.exists() else []
    wer: dict[str, float] = {}
    costs, models = [], models or [folder]
    for model in models:
        try:
            summary = newest_summary(system, model / config.method, config.split)
        except ValueError:
            return
        languages = read_summary(summary)["languages"]
        wer |= {code: scores["wer"] for code, scores in languages.items()}
        masks = model / layout.MASKS_FILE
        costs.append(read_costs(model, summary, languages, PathwayMasks.load(masks) if masks.exists() else None))
    yield StudyResult(system, sparsity, seed, tuple(models), wer, join_languages(costs))


def tables(config: StudyConfig, results: list[StudyResult]) -> str:
    """Format Markdown tables per sparsity: error rates, costs, and differences of pathways from the other systems.

    Error rates are means and standard deviations over seeds, with relative changes per seed; costs are means.
    Differences have the 95 % interval of a bootstrap over utterances and seeds. Systems without masks are in every
    table; if there are no others, they have tables of their own.

    Raises:
      ValueError: The decoded utterances of a system are damaged, or differ from those of another one.
    """
    sparsities = sorted({result.sparsity for result in results} - {0.0}) or [0.0]
    return "\n\n".join([*(_tables(config, results, sparsity) for sparsity in sparsities), NOTE])


def _tables(config: StudyConfig, results: list[StudyResult], sparsity: float) -> str:
    languages = list(results[0].wer)
    seeds = {result.seed for result in results if result.sparsity == sparsity}
    by_system: dict[str, list[StudyResult]] = defaultdict(list)
    for result in results:
        if result.sparsity in (0, sparsity) and result.seed in seeds:
            by_system[result.system].append(result)
    baselines = [system for system in _BASELINES if by_system[system]]
    rows, costs = [], []
    for system in (system for system in STUDY_SYSTEMS if by_system[system]):
        runs = by_system[system]
        error_rates = [*([run.wer[language] for run in runs] for language in languages), [run.average for run in runs]]
        changes = (_changes(runs, by_system[baseline]) for baseline in baselines)
        rows.append([SYSTEMS[system], *map(spread, error_rates), *changes, str(len(runs))])
        costs.append([SYSTEMS[system], *mean_costs([run.costs for run in runs]).cells()])
    against = (f"against {SYSTEMS[baseline]}" for baseline in baselines)
    header = ["system", *map(rate_title, languages), "average", *against, "seeds"]
    parts = [f"Sparsity {100 * sparsity:.0f} %", _markdown(header, rows), _markdown(["system", *TITLES], costs)]
    if differences := list(_differences(config, by_system)):
        parts.append(_markdown([f"average WER of {SYSTEMS[_PATHWAYS]} against", *_DIFFERENCES], differences))
    return "\n\n".join(parts)


def _differences(config: StudyConfig, by_system: dict[str, list[StudyResult]]) -> Iterator[list[str]]:
    """Yield a row for every system that has seeds in common with pathways."""
    pathways = {result.seed: _read_run(config, result) for result in by_system[_PATHWAYS]}
    for system in STUDY_SYSTEMS:
        others = [result for result in by_system[system] if result.seed in pathways]
        if system == _PATHWAYS or not others:
            continue
        runs = [_read_run(config, result) for result in others]
        average = compare_runs(runs, [pathways[result.seed] for result in others])[AVERAGE]
        p_value = f"{bootstrap_p_value(average.differences):.4f}"
        yield [SYSTEMS[system], average.interval_text, average.relative_text, p_value, str(len(others))]


def _read_run(config: StudyConfig, result: StudyResult) -> Run:
    """Read the decoded utterances of all models of a system."""
    results: dict[str, list[Utterance]] = {}
    for folder in result.folders:
        results |= newest_results(folder, config.method, config.split)
    return str(result.folders[0]), results


def spread(values: list[float], sign: str = "") -> str:
    """Format the mean, with the sample standard deviation if there is more than one value."""
    mean = f"{fmean(values):{sign}.1f}"
    return f"{mean} ± {stdev(values):.1f}" if len(values) > 1 else mean


def _changes(runs: list[StudyResult], baseline: list[StudyResult]) -> str:
    """Format the relative change of the average against the baseline with the same seed, in percent."""
    averages = {result.seed: result.average for result in baseline}
    changes = [100 * (run.average / averages[run.seed] - 1) for run in runs if averages.get(run.seed)]
    same = any(run is other for run in runs for other in baseline)
    return "" if same or not changes else f"{spread(changes, '+')} %"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_study(config: StudyConfig) -> str:
    """Write the tables and the plot, and return the tables.

    Raises:
      ValueError: Nothing has been decoded, or results are damaged or not comparable.
    """
    results = gather(config)
    text = tables(config, results)
    with atomic_write(config.output) as page:
        page.write_text(f"{text}\n", encoding="utf-8")
    with atomic_write(config.output.with_suffix(".png")) as image:
        _plot(results, image)
    return text


def _plot(results: list[StudyResult], path: Path) -> None:
    """Plot the averages over sparsity, or by system if there is only one sparsity."""
    curves: dict[str, dict[float, dict[int, float]]] = {}
    for result in sorted(results, key=lambda result: STUDY_SYSTEMS.index(result.system)):
        curves.setdefault(SYSTEMS[result.system], {}).setdefault(result.sparsity, {})[result.seed] = result.average
    if len({result.sparsity for result in results} - {0.0}) > 1:
        plots.plot_sweep(curves, path)
    else:
        plots.plot_systems({name: runs for name, points in curves.items() for runs in points.values()}, path)
