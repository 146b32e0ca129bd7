"""Comparison of two systems: word error rates and the significance of their difference."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from icefall_pathways.decoding.significance import bootstrap_p_value
from icefall_pathways.files import write_json
from icefall_pathways.languages import get_language
from icefall_pathways.ranges import Options, PositiveInt, Seed
from icefall_pathways.reporting.comparison import AVERAGE, Bootstrap, Comparison, Run, compare_runs, newest_results
from icefall_pathways.reporting.results import rate_title
from icefall_pathways.reporting.speakers import speakers_of


@dataclass(frozen=True)
class CompareConfig(Options):
    """Options of the comparison. The newest result of each folder is used."""

    system_a: tuple[Path, ...] = (Path("exp/dense"),)
    """Experiment folder of the first system. Several: its runs with several seeds, which are bootstrapped as well."""

    system_b: tuple[Path, ...] = (Path("exp/pathways"),)
    """Experiment folder of the second system, or of its runs with the same seeds in the same order."""

    method: str = "streaming/modified_beam_search"
    """Folder of the results in each experiment folder, such as greedy_search."""

    split: str = "test"
    """Decoded split, test or dev."""

    resample: Literal["utterance", "speaker"] = "utterance"
    """Unit of the bootstrap: utterances, or speakers with all their utterances (wider intervals, which hold for new
    speakers)."""

    rounds: PositiveInt = 10000
    """Number of bootstrap samples."""

    seed: Seed = 42
    """Seed of the bootstrap."""

    output: Path | None = None
    """JSON file for the results; None: only print the table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, folders in (("--system-a", self.system_a), ("--system-b", self.system_b)):
            if not folders:
                raise ValueError(f"{option} is empty: expected the experiment folder of a system, or several")
            if len(set(folders)) < len(folders):
                raise ValueError(f"{option} is {' '.join(map(str, folders))}: expected each folder once, one per seed")


def compare(config: CompareConfig) -> str:
    """Compare two systems, and return a table.

    Raises:
      ValueError: A system has not been decoded, the systems were decoded on different utterances, they have different
        numbers of runs, or speakers are not known.
    """
    read_speakers = partial(speakers_of, config.system_a[0], config.method, config.split)
    bootstrap = Bootstrap(config.rounds, config.seed, read_speakers if config.resample == "speaker" else None)
    compared = compare_runs(_read(config.system_a, config), _read(config.system_b, config), bootstrap)
    if config.output:
        statistics = {code: comparison.as_dict() for code, comparison in compared.items()}
        systems = {"system_a": _folders(config.system_a), "system_b": _folders(config.system_b)}
        write_json(config.output, systems | {"languages": statistics})
    return _table(compared)


def _read(folders: tuple[Path, ...], config: CompareConfig) -> list[Run]:
    return [(str(folder), newest_results(folder, config.method, config.split)) for folder in folders]


def _folders(folders: tuple[Path, ...]) -> str | list[str]:
    """Return the value of a system in the JSON file: a folder, or a list of several."""
    return str(folders[0]) if len(folders) == 1 else [str(folder) for folder in folders]


def _table(compared: dict[str, Comparison]) -> str:
    rows = [
        [
            code if code == AVERAGE else rate_title(code).replace(code, get_language(code).name),
            f"{row.wer[0]:.2f}",
            f"{row.wer[1]:.2f}",
            row.interval_text,
            row.relative_text,
            f"{bootstrap_p_value(row.differences):.4f}",
            "" if row.matched_pairs is None else f"{row.matched_pairs:.4f}",
            row.utterances,
        ]
        for code, row in compared.items()
    ]
    header = ["language", "WER A", "WER B", "B - A (95 %)", "relative", "p bootstrap", "p matched pairs", "utterances"]
    return tabulate(rows, header, tablefmt="simple", stralign="right", disable_numparse=True)
