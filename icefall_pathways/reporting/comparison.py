"""Paired bootstrap of two systems, over utterances and over runs with several seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icefall_pathways.decoding.scoring import Utterance, read_results, score
from icefall_pathways.decoding.significance import (
    Counts,
    bootstrap_p_value,
    draw_runs,
    error_rates,
    interval,
    matched_pairs_p_value,
    resample_runs,
)
from icefall_pathways.experiment import layout
from icefall_pathways.experiment.result_summary import read_summary
from icefall_pathways.languages import get_language, scored_by_characters
from icefall_pathways.reporting.results import newest_summary, recorded_corpus

#: Decoded utterances of an experiment by language code.
Results = Mapping[str, list[Utterance]]
#: Name of a run, for error messages, and its results.
Run = tuple[str, Results]

#: Key of the comparison on average over all languages.
AVERAGE = "average"


@dataclass(frozen=True)
class Bootstrap:
    """Options of the bootstrap.

    Attributes:
      rounds: Number of bootstrap samples.
      seed: Random seed.
      read_speakers: Returns the speakers of cuts of a language, given its code and their ids, to draw speakers with all
        their utterances; None: draw utterances.
    """

    rounds: int = 10000
    seed: int = 42
    read_speakers: Callable[[str, Sequence[str]], list[str]] | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of two systems in one language, or on average over all languages.

    Attributes:
      wer: Word error rates of both systems in percent.
      differences: Word error rate of the second system minus that of the first, for each bootstrap sample.
      matched_pairs: p-value of the matched-pairs test; None for the average and for several runs.
      utterances: Number of utterances.
    """

    wer: tuple[float, float]
    differences: NDArray[np.float64]
    matched_pairs: float | None
    utterances: int

    @property
    def difference(self) -> float:
        """Word error rate of the second system minus that of the first."""
        return self.wer[1] - self.wer[0]

    @property
    def interval_text(self) -> str:
        """The difference with its 95 % confidence interval."""
        low, high = interval(self.differences)
        return f"{self.difference:+.2f} ({low:+.2f} to {high:+.2f})"

    @property
    def relative_text(self) -> str:
        """The difference in percent of the first system's word error rate; "" if that is 0."""
        return f"{100 * self.difference / self.wer[0]:+.1f} %" if self.wer[0] else ""

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as plain data."""
        return {
            "wer_a": self.wer[0],
            "wer_b": self.wer[1],
            "difference": self.difference,
            "interval": interval(self.differences),
            "bootstrap_p": bootstrap_p_value(self.differences),
            "matched_pairs_p": self.matched_pairs,
            "utterances": self.utterances,
        }


def newest_results(exp_dir: Path, method: str, split: str) -> Results:
    """Read the newest decoded utterances of an experiment.

    Raises:
      ValueError: The experiment has not been decoded with this method on this split, or a file is damaged.
    """
    path = newest_summary(str(exp_dir), exp_dir / method, split)
    summary = read_summary(path)
    corpus = recorded_corpus(summary)
    prefix = layout.result_file(path.parent, "wer-summary", f"all-{corpus}-{split}", "", "").name
    suffix = path.stem.removeprefix(prefix)
    test_sets = {code: f"{corpus}-{get_language(code).name}-{split}" for code in summary["languages"]}
    return {code: read_results(path.parent, test_set, suffix) for code, test_set in test_sets.items()}


def compare_runs(a: Sequence[Run], b: Sequence[Run], options: Bootstrap = Bootstrap()) -> dict[str, Comparison]:
    """Compare two systems by language code, and on average under the key `AVERAGE`.

    Each bootstrap sample draws utterances, and runs if there are several: its difference is that of the drawn
    utterances and pairs of runs. So the interval holds for other utterances and other seeds; three runs are few for
    the latter.

    Args:
      a: Runs of the first system.
      b: Runs of the second system, in the same order: runs are paired, such as by their seed.
      options: Options of the bootstrap.

    Raises:
      ValueError: The systems have different numbers of runs, or languages or utterances differ.
    """
    if len(a) != len(b):
        names_a, names_b = (", ".join(name for name, _ in runs) for runs in (a, b))
        raise ValueError(
            f"the systems have different numbers of runs, {len(a)} ({names_a}) and {len(b)} ({names_b}): pass as many "
            "folders for each, those of the same seed at the same position"
        )
    first, expected = a[0]
    for name, results in (*a, *b):
        _check_comparable(first, expected, name, results)
    run_weights = draw_runs(len(a), options.rounds, options.seed)
    compared = {}
    for index, (code, utterances) in enumerate(expected.items()):
        order = [utterance.cut_id for utterance in utterances]
        pairs = zip(a, b, strict=True)
        counts = np.stack([_paired_counts(run_a[code], run_b[code], order, code) for (_, run_a), (_, run_b) in pairs])
        speakers = None if options.read_speakers is None else options.read_speakers(code, order)
        compared[code] = _compare(counts, resample_runs(counts, run_weights, options.seed + index, speakers))
    compared[AVERAGE] = Comparison(
        wer=_mean_wer(list(compared.values())),
        differences=np.mean([comparison.differences for comparison in compared.values()], axis=0),
        matched_pairs=None,
        utterances=sum(comparison.utterances for comparison in compared.values()),
    )
    return compared


def _check_comparable(first: str, expected: Results, name: str, results: Results) -> None:
    """Raise a ValueError if a run has other languages or utterances than the first one."""
    if set(results) != set(expected):
        raise ValueError(
            f"{first} was decoded in {' '.join(expected)}, {name} in {' '.join(results)}: decode both in the same "
            "languages"
        )
    for code, utterances in results.items():
        if {u.cut_id: u.ref for u in utterances} != {u.cut_id: u.ref for u in expected[code]}:
            raise ValueError(
                f"{first} and {name} were not decoded on the same utterances with the same transcripts: decode both on "
                "the same data"
            )


def _paired_counts(a: list[Utterance], b: list[Utterance], order: Sequence[str], code: str) -> Counts:
    """Return the errors of both systems and the words of each utterance, (utterances, 3)."""
    by_characters = scored_by_characters(code)
    counts = []
    for utterances in (a, b):
        by_id = {utterance.cut_id: utterance for utterance in utterances}
        counts.append(score((by_id[cut_id] for cut_id in order), by_characters).word_counts())
    return np.column_stack([counts[0][:, 0], counts[1][:, 0], counts[0][:, 1]])


def _compare(counts: Counts, samples: Counts) -> Comparison:
    """Return the comparison, given counts (runs, utterances, 3) and their bootstrap samples (rounds, 3)."""
    errors_a, errors_b, words = counts.sum(axis=(0, 1))
    single = counts[0] if len(counts) == 1 else None
    return Comparison(
        wer=(float(error_rates(errors_a, words)), float(error_rates(errors_b, words))),
        differences=error_rates(samples[:, 1] - samples[:, 0], samples[:, 2]),
        matched_pairs=None if single is None else matched_pairs_p_value(single[:, 1] - single[:, 0]),
        utterances=counts.shape[1],
    )


def _mean_wer(compared: list[Comparison]) -> tuple[float, float]:
    a, b = np.mean([comparison.wer for comparison in compared], axis=0).tolist()
    return a, b
