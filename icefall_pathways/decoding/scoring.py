"""Word and character error rates, and the files that tell them: icefall's per language, and one table for all."""

import ast
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from icefall_pathways.decoding.significance import Counts, error_rates, interval, resample
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, write_json
from icefall_pathways.languages import get_language

BOOTSTRAP_ROUNDS, BOOTSTRAP_SEED = 1000, 42
_GAP = "*"  # stands for the missing word of an insertion or a deletion; no transcript holds it


@dataclass(frozen=True)
class Alternative:
    """One of the n best hypotheses of an utterance.

    Attributes:
      text: What was recognised.
      score: What the search compared, hotwords and language model included.
      log_prob: The transducer's part of it.
      tokens: As they are written in tokens.txt.
      times: When each token was emitted, in seconds from the start.
    """

    text: str
    score: float
    log_prob: float
    tokens: list[str]
    times: list[float]


@dataclass(frozen=True)
class Utterance:
    """What was said in a cut and what was recognised, as words; perhaps with the n best hypotheses, best first."""

    cut_id: str
    ref: list[str]
    hyp: list[str]
    alternatives: list[Alternative] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """The aligned words of a test set, and its errors in characters.

    Attributes:
      alignments: Per cut, pairs (reference word, recognised word); "*" where one of the two is missing.
      pairs: How often each pair occurs.
      characters: (utterances, 4) substituted, deleted, inserted and reference characters, the spaces between words
        among them, in the order of `alignments`.
    """

    alignments: Mapping[str, list[tuple[str, str]]]
    pairs: Counter[tuple[str, str]]
    characters: Counts

    @property
    def utterances(self) -> int:
        """Number of utterances."""
        return len(self.alignments)

    @property
    def words(self) -> int:
        """Number of reference words."""
        return sum(count for (ref, _), count in self.pairs.items() if ref != _GAP)

    @property
    def insertions(self) -> int:
        """Recognised words that nobody said."""
        return sum(self.inserted().values())

    @property
    def deletions(self) -> int:
        """Words said that were not recognised."""
        return sum(self.deleted().values())

    @property
    def substitutions(self) -> int:
        """Words recognised as others."""
        return sum(self.substituted().values())

    @property
    def errors(self) -> int:
        """All three kinds of error."""
        return sum(count for (ref, hyp), count in self.pairs.items() if ref != hyp)

    @property
    def wer(self) -> float:
        """Errors per 100 reference words; a test set without a reference word counts as one word."""
        return 100.0 * self.errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Errors per 100 reference characters."""
        return float(error_rates(self.characters[:, :3].sum(), self.characters[:, 3].sum()))

    def word_counts(self) -> Counts:
        """(utterances, 2) errors and reference words, in the order of `alignments`."""
        counts = [
            (sum(ref != hyp for ref, hyp in pairs), sum(ref != _GAP for ref, _ in pairs))
            for pairs in self.alignments.values()
        ]
        return np.array(counts, dtype=np.int64)

    def resampled_wer(self, seed: int = BOOTSTRAP_SEED) -> NDArray[np.float64]:
        """Word error rates of `BOOTSTRAP_ROUNDS` test sets drawn from this one's utterances."""
        sums = resample(self.word_counts(), BOOTSTRAP_ROUNDS, seed)
        return error_rates(sums[:, 0], sums[:, 1])

    def inserted(self) -> Counter[tuple[str, str]]:
        """Pairs without a reference word."""
        return Counter({pair: count for pair, count in self.pairs.items() if pair[0] == _GAP})

    def deleted(self) -> Counter[tuple[str, str]]:
        """Pairs without a recognised word."""
        return Counter({pair: count for pair, count in self.pairs.items() if pair[1] == _GAP})

    def substituted(self) -> Counter[tuple[str, str]]:
        """Pairs of two words that differ."""
        return Counter({(r, h): count for (r, h), count in self.pairs.items() if _GAP not in (r, h) and r != h})

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data; `wer_interval` holds the rate with a probability of 95 %."""
        substitutions, deletions, insertions, total = self.characters.sum(axis=0).tolist()
        return {
            "wer": self.wer,
            "wer_interval": interval(self.resampled_wer()),
            "errors": self.errors,
            "words": self.words,
            "sub": self.substitutions,
            "del": self.deletions,
            "ins": self.insertions,
            "utterances": self.utterances,
            "cer": self.cer,
            "characters": {"sub": substitutions, "del": deletions, "ins": insertions, "total": total},
        }


def score(utterances: Iterable[Utterance]) -> Score:
    """Align what was recognised with what was said.

    Raises:
      ValueError: There is no utterance, or two have one cut id.
    """
    alignments: dict[str, list[tuple[str, str]]] = {}
    characters = []
    for utterance in utterances:
        if utterance.cut_id in alignments:
            raise ValueError(f"cut {utterance.cut_id} was decoded twice: expected every cut of a test set once")
        alignments[utterance.cut_id] = kaldialign.align(utterance.ref, utterance.hyp, _GAP)
        ref, hyp = " ".join(utterance.ref), " ".join(utterance.hyp)
        distance = kaldialign.edit_distance(list(ref), list(hyp))
        characters.append((distance["sub"], distance["del"], distance["ins"], len(ref)))
    if not alignments:
        raise ValueError("no utterance to score: the test set is empty")
    pairs = Counter(pair for pairs in alignments.values() for pair in pairs)
    return Score(alignments, pairs, np.array(characters, dtype=np.int64))


def write_results(folder: Path, test_set: str, suffix: str, utterances: Sequence[Utterance]) -> Score:
    """Score one test set and write its `recogs-`, `errs-` and `wer-summary-` files, and `nbest-` if there is any.

    Args:
      folder: Where the files go.
      test_set: Such as "mls-english-test".
      suffix: The settings, the last part of each file's name.
      utterances: Of the test set, in any order.

    Raises:
      ValueError: There is no utterance.
    """
    if not utterances:
        raise ValueError(f"{test_set}: no utterance was decoded, so there is no word error rate")
    utterances = sorted(utterances, key=lambda utterance: utterance.cut_id)
    result = score(utterances)
    recogs = [f"{u.cut_id}:\t{side}={getattr(u, side)}" for u in utterances for side in ("ref", "hyp")]
    _write_lines(layout.result_file(folder, "recogs", test_set, suffix), recogs)
    if any(utterance.alternatives for utterance in utterances):
        _write_lines(
            layout.result_file(folder, "nbest", test_set, suffix, ".jsonl"), map(_alternatives_line, utterances)
        )
    _write_lines(layout.result_file(folder, "errs", test_set, suffix), _error_lines(result))
    settings = ["settings\tWER", f"{suffix}\t{result.wer:.2f}"]
    _write_lines(layout.result_file(folder, "wer-summary", test_set, suffix), settings)
    return result


def read_results(folder: Path, test_set: str, suffix: str) -> list[Utterance]:
    """Read back the `recogs-` file that `write_results` wrote.

    Raises:
      ValueError: It is missing or damaged.
    """
    path = layout.result_file(folder, "recogs", test_set, suffix)
    if not path.is_file():
        raise ValueError(f"no {path}: decode {test_set} first")
    found: dict[str, dict[str, list[str]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cut_id, _, entry = line.partition(":\t")
        side, _, words = entry.partition("=")
        try:
            found.setdefault(cut_id, {})[side] = ast.literal_eval(words)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({line[:60]!r}): decode anew") from error
    incomplete = [cut_id for cut_id, sides in found.items() if set(sides) != {"ref", "hyp"}]
    if incomplete:
        raise ValueError(f"{path} is damaged: {incomplete[0]} lacks its ref= or hyp= line; decode anew")
    return [Utterance(cut_id, sides["ref"], sides["hyp"]) for cut_id, sides in found.items()]


def summarize(
    split: str, method: str, scores: Mapping[str, Score], extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The figures of several languages and the mean of their word error rates, each language counting alike.

    Args:
      split: "test" or "dev".
      method: The decoding method.
      scores: By language code, in the order of the table.
      extra: Further figures to record.

    Raises:
      ValueError: There is no language.
    """
    if not scores:
        raise ValueError("no language was decoded, so there is no average word error rate")
    # A seed for each, since the languages' test sets are drawn independently.
    samples = [result.resampled_wer(BOOTSTRAP_SEED + i) for i, result in enumerate(scores.values())]
    return {
        "split": split,
        "method": method,
        "languages": {code: result.as_dict() for code, result in scores.items()},
        "average_wer": sum(result.wer for result in scores.values()) / len(scores),
        "average_wer_interval": interval(np.mean(samples, axis=0)),
        "average_cer": sum(result.cer for result in scores.values()) / len(scores),
        **(extra or {}),
    }


def write_summary(folder: Path, corpus: str, suffix: str, summary: Mapping[str, Any]) -> str:
    """Write `wer-summary-all-<corpus>-<split>-<suffix>.txt` and `.json`, and give the table for printing."""
    path = layout.result_file(folder, "wer-summary", f"all-{corpus}-{summary['split']}", suffix)
    table = format_table(summary)
    write_json(path.with_suffix(".json"), {"corpus": corpus, **summary})
    _write_lines(path, table.splitlines())
    return table


def format_table(summary: Mapping[str, Any]) -> str:
    """An aligned table of what `summarize` gives: a row per language, and the average."""
    columns = ("errors", "words", "sub", "del", "ins", "utterances")
    rows: list[list[Any]] = [
        [
            get_language(code).name,
            figures["wer"],
            _interval_text(figures["wer_interval"]),
            figures["cer"],
            *(figures[column] for column in columns),
        ]
        for code, figures in summary["languages"].items()
    ]
    average = [summary["average_wer"], _interval_text(summary["average_wer_interval"]), summary["average_cer"]]
    rows.append(["average", *average, *[None] * len(columns)])
    return tabulate(rows, ["language", "WER %", "95 % interval", "CER %", *columns], tablefmt="simple", floatfmt=".2f")


def _interval_text(limits: Sequence[float]) -> str:
    return f"{limits[0]:.2f} to {limits[1]:.2f}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _alternatives_line(utterance: Utterance) -> str:
    entry = {"cut": utterance.cut_id, "nbest": [asdict(alternative) for alternative in utterance.alternatives]}
    return json.dumps(entry, ensure_ascii=False)


def _error_lines(result: Score) -> list[str]:
    correct = result.words - result.deletions - result.substitutions
    return [
        f"%WER = {result.wer:.2f}",
        f"Errors: {result.insertions} insertions, {result.deletions} deletions, {result.substitutions} substitutions, "
        f"over {result.words} reference words ({correct} correct)",
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",
        *(f"{cut_id}:\t{_mark_errors(pairs)}" for cut_id, pairs in result.alignments.items()),
        "",
        "SUBSTITUTIONS: count ref -> hyp",
        *(f"{count}   {ref} -> {hyp}" for (ref, hyp), count in _ranked(result.substituted())),
        "",
        "DELETIONS: count ref",
        *(f"{count}   {ref}" for (ref, _), count in _ranked(result.deleted())),
        "",
        "INSERTIONS: count hyp",
        *(f"{count}   {hyp}" for (_, hyp), count in _ranked(result.inserted())),
        "",
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
        *_word_lines(result),
    ]


def _ranked(pairs: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return sorted(pairs.items(), key=lambda item: (-item[1], item[0]))


def _mark_errors(pairs: list[tuple[str, str]]) -> str:
    """An utterance's words, neighbouring errors in one bracket: `good (mourning->morning) (*->the) all`."""
    words: list[str] = []
    wrong: list[tuple[str, str]] = []
    for pair in [*pairs, ("", "")]:
        if pair[0] != pair[1]:
            wrong.append(pair)
            continue
        if wrong:
            ref, hyp = (" ".join(word for word in side if word != _GAP) or _GAP for side in zip(*wrong, strict=True))
            words.append(f"({ref}->{hyp})")
            wrong = []
        words.append(pair[0])
    return " ".join(words).rstrip()


def _word_lines(result: Score) -> list[str]:
    """Per word: how often right, errors in which it takes part, how often said, how often recognised."""
    correct: Counter[str] = Counter()
    said: Counter[str] = Counter()
    recognised: Counter[str] = Counter()
    for (ref, hyp), count in result.pairs.items():
        said[ref] += count
        recognised[hyp] += count
        if ref == hyp:
            correct[ref] += count
    rows = [
        (word, correct[word], said[word] + recognised[word] - 2 * correct[word], said[word], recognised[word])
        for word in said.keys() | recognised.keys()
        if word != _GAP
    ]
    return ["{}   {} {} {} {}".format(*row) for row in sorted(rows, key=lambda row: (-row[2], -row[3], row[0]))]
