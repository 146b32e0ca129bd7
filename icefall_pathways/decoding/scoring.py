"""Word error rates, and the files that tell them: in icefall's format per language, and one table for all."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kaldialign
from tabulate import tabulate

from icefall_pathways.files import atomic_write, write_json
from icefall_pathways.languages import get_language

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
    """The aligned words of a test set.

    Attributes:
      alignments: Per cut, pairs (reference word, recognised word); "*" where one of the two is missing.
      pairs: How often each pair occurs.
    """

    alignments: Mapping[str, list[tuple[str, str]]]
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

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
        """The figures as plain data."""
        return {
            "wer": self.wer,
            "errors": self.errors,
            "words": self.words,
            "sub": self.substitutions,
            "del": self.deletions,
            "ins": self.insertions,
            "utterances": self.utterances,
        }


def score(utterances: Iterable[Utterance]) -> Score:
    """Align what was recognised with what was said.

    Raises:
      ValueError: There is no utterance, or two have one cut id.
    """
    alignments: dict[str, list[tuple[str, str]]] = {}
    for utterance in utterances:
        if utterance.cut_id in alignments:
            raise ValueError(f"cut {utterance.cut_id} was decoded twice: expected every cut of a test set once")
        alignments[utterance.cut_id] = kaldialign.align(utterance.ref, utterance.hyp, _GAP)
    if not alignments:
        raise ValueError("no utterance to score: the test set is empty")
    return Score(alignments, Counter(pair for pairs in alignments.values() for pair in pairs))


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
    _write_lines(folder / f"recogs-{test_set}-{suffix}.txt", recogs)
    if any(utterance.alternatives for utterance in utterances):
        _write_lines(folder / f"nbest-{test_set}-{suffix}.jsonl", map(_alternatives_line, utterances))
    _write_lines(folder / f"errs-{test_set}-{suffix}.txt", _error_lines(result))
    _write_lines(folder / f"wer-summary-{test_set}-{suffix}.txt", ["settings\tWER", f"{suffix}\t{result.wer:.2f}"])
    return result


def summarise(
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
    return {
        "split": split,
        "method": method,
        "languages": {code: result.as_dict() for code, result in scores.items()},
        "average_wer": sum(result.wer for result in scores.values()) / len(scores),
        **(extra or {}),
    }


def write_summary(folder: Path, suffix: str, summary: Mapping[str, Any]) -> str:
    """Write `wer-summary-all-mls-<split>-<suffix>.txt` and `.json`, and give the table for printing."""
    name = f"wer-summary-all-mls-{summary['split']}-{suffix}"
    table = format_table(summary)
    write_json(folder / f"{name}.json", summary)
    _write_lines(folder / f"{name}.txt", table.splitlines())
    return table


def format_table(summary: Mapping[str, Any]) -> str:
    """An aligned table of what `summarise` gives: a row per language, and the average."""
    columns = ("wer", "errors", "words", "sub", "del", "ins", "utterances")
    rows: list[list[Any]] = [
        [get_language(code).name, *(figures[column] for column in columns)]
        for code, figures in summary["languages"].items()
    ]
    rows.append(["average", summary["average_wer"], *[None] * (len(columns) - 1)])
    return tabulate(rows, ["language", "WER %", *columns[1:]], tablefmt="simple", floatfmt=".2f")


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
