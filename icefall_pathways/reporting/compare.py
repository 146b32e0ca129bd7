"""Comparison of two systems: word error rates and the significance of their difference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from icefall_pathways.corpora.mls_layout import split_handle
from icefall_pathways.decoding.scoring import Utterance, read_results, score
from icefall_pathways.decoding.significance import (
    bootstrap_p_value,
    error_rates,
    interval,
    matched_pairs_p_value,
    resample,
)
from icefall_pathways.experiment import layout
from icefall_pathways.files import read_json, write_json
from icefall_pathways.languages import get_language, scored_by_characters
from icefall_pathways.ranges import Options, PositiveInt, Seed
from icefall_pathways.reporting.results import newest_summary, rate_title


@dataclass(frozen=True)
class CompareConfig(Options):
    """Options of the comparison. The newest result of each folder is used."""

    system_a: Path = Path("exp/dense")
    """Experiment folder of the first system."""

    system_b: Path = Path("exp/pathways")
    """Experiment folder of the second system."""

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


@dataclass(frozen=True)
class Comparison:
    """Comparison of two systems in one language, or on average over all languages.

    Attributes:
      wer: Word error rates of both systems in percent.
      differences: Word error rate of the second system minus that of the first, for each bootstrap sample.
      matched_pairs: p-value of the matched-pairs test; None for the average.
      utterances: Number of utterances.
    """

    wer: tuple[float, float]
    differences: NDArray[np.float64]
    matched_pairs: float | None
    utterances: int

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        a, b = self.wer
        return {
            "wer_a": a,
            "wer_b": b,
            "difference": b - a,
            "interval": interval(self.differences),
            "bootstrap_p": bootstrap_p_value(self.differences),
            "matched_pairs_p": self.matched_pairs,
            "utterances": self.utterances,
        }


def compare(config: CompareConfig) -> str:
    """Compare two systems, and return a table.

    Raises:
      ValueError: A system has not been decoded, or the systems were decoded on different utterances.
    """
    codes_a, corpus_a, suffix_a = _newest(config.system_a, config)
    codes_b, corpus_b, suffix_b = _newest(config.system_b, config)
    if codes_a != codes_b:
        raise ValueError(
            f"{config.system_a} was decoded in {' '.join(codes_a)}, {config.system_b} in {' '.join(codes_b)}: decode "
            "both in the same languages"
        )
    compared = {}
    for index, code in enumerate(codes_a):
        language = get_language(code).name
        test_set_a, test_set_b = (f"{corpus}-{language}-{config.split}" for corpus in (corpus_a, corpus_b))
        utterances_a = read_results(config.system_a / config.method, test_set_a, suffix_a)
        utterances_b = read_results(config.system_b / config.method, test_set_b, suffix_b)
        compared[code] = compare_utterances(
            utterances_a, utterances_b, config, config.seed + index, scored_by_characters(code)
        )
    compared["average"] = Comparison(
        wer=_mean_wer(list(compared.values())),
        differences=np.mean([comparison.differences for comparison in compared.values()], axis=0),
        matched_pairs=None,
        utterances=sum(comparison.utterances for comparison in compared.values()),
    )
    statistics = {code: comparison.as_dict() for code, comparison in compared.items()}
    if config.output:
        write_json(config.output, {"system_a": config.system_a, "system_b": config.system_b, "languages": statistics})
    return _table(statistics)


def compare_utterances(
    a: list[Utterance], b: list[Utterance], config: CompareConfig, seed: int, by_characters: bool = False
) -> Comparison:
    """Compare the hypotheses of two systems for the same utterances, by words or by characters.

    Raises:
      ValueError: The utterances differ.
    """
    by_id = {utterance.cut_id: utterance for utterance in b}
    if {utterance.cut_id: utterance.ref for utterance in a} != {cut_id: u.ref for cut_id, u in by_id.items()}:
        raise ValueError(
            f"{config.system_a} and {config.system_b} were not decoded on the same utterances with the same "
            "transcripts: decode both on the same data"
        )
    counts_a = score(a, by_characters).word_counts()
    counts_b = score((by_id[utterance.cut_id] for utterance in a), by_characters).word_counts()
    counts = np.column_stack([counts_a[:, 0], counts_b[:, 0], counts_a[:, 1]])
    speakers = [split_handle(u.cut_id)[0] for u in a] if config.resample == "speaker" else None
    samples = resample(counts, config.rounds, seed, speakers)
    errors_a, errors_b, words = counts.sum(axis=0)
    return Comparison(
        wer=(float(error_rates(errors_a, words)), float(error_rates(errors_b, words))),
        differences=error_rates(samples[:, 1] - samples[:, 0], samples[:, 2]),
        matched_pairs=matched_pairs_p_value(counts[:, 1] - counts[:, 0]),
        utterances=len(a),
    )


def _newest(exp_dir: Path, config: CompareConfig) -> tuple[list[str], str, str]:
    """Return the languages, the corpus, and the suffix of the file names of an experiment's newest result."""
    path = newest_summary(str(exp_dir), exp_dir / config.method, config.split)
    summary = read_json(path)
    corpus = summary.get("corpus", "mls")  # summaries of earlier versions, which read MLS only, do not record it
    prefix = layout.result_file(path.parent, "wer-summary", f"all-{corpus}-{config.split}", "", "").name
    return list(summary["languages"]), corpus, path.stem.removeprefix(prefix)


def _mean_wer(compared: list[Comparison]) -> tuple[float, float]:
    a, b = np.mean([comparison.wer for comparison in compared], axis=0).tolist()
    return a, b


def _table(statistics: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            code if code == "average" else rate_title(code).replace(code, get_language(code).name),
            f"{row['wer_a']:.2f}",
            f"{row['wer_b']:.2f}",
            f"{row['difference']:+.2f} ({row['interval'][0]:+.2f} to {row['interval'][1]:+.2f})",
            f"{100 * row['difference'] / row['wer_a']:+.1f} %" if row["wer_a"] else "",
            f"{row['bootstrap_p']:.4f}",
            "" if row["matched_pairs_p"] is None else f"{row['matched_pairs_p']:.4f}",
            row["utterances"],
        ]
        for code, row in statistics.items()
    ]
    header = ["language", "WER A", "WER B", "B - A (95 %)", "relative", "p bootstrap", "p matched pairs", "utterances"]
    return tabulate(rows, header, tablefmt="simple", stralign="right", disable_numparse=True)
