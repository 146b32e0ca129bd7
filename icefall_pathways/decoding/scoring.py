"""Word and character error rates, with icefall's result files per language and one table of all languages."""

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
from icefall_pathways.errors import quote
from icefall_pathways.experiment import layout
from icefall_pathways.files import atomic_write, read_lines, write_json
from icefall_pathways.languages import get_language, scored_units

BOOTSTRAP_ROUNDS, BOOTSTRAP_SEED = 1000, 42
_GAP = ""  # stands for the missing word of an insertion or a deletion; no word is empty
_BY_CHARACTERS = " (by characters)"  # after the name of a language
_PRINTED_GAP = "*"  # in errs- files, as in icefall


@dataclass(frozen=True)
class Alternative:
    """An n-best hypothesis of an utterance.

    Attributes:
      text: Decoded text.
      score: Total score, including hotwords and language model.
      log_prob: Log-probability of the transducer.
      tokens: Token symbols, as in tokens.txt.
      times: Time of each token, in seconds from the start.
    """

    text: str
    score: float
    log_prob: float
    tokens: list[str]
    times: list[float]


@dataclass(frozen=True)
class Utterance:
    """Reference and hypothesis words of a cut, optionally with n-best hypotheses (best first)."""

    cut_id: str
    ref: list[str]
    hyp: list[str]
    alternatives: list[Alternative] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """Word alignments and character errors of a test set.

    In languages without spaces between words, its words are the characters of the transcripts, without spaces.

    Attributes:
      alignments: Per cut, pairs (reference word, hypothesis word); "" replaces a missing word.
      pairs: Count of each pair.
      characters: (utterances, 4) substituted, deleted, inserted and reference characters, including spaces, in the
        order of `alignments`.
      by_characters: Its words are characters.
    """

    alignments: Mapping[str, list[tuple[str, str]]]
    pairs: Counter[tuple[str, str]]
    characters: Counts
    by_characters: bool = False

    @property
    def metric(self) -> str:
        """Name of the error rate: WER, or CER if its words are characters."""
        return "CER" if self.by_characters else "WER"

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
        """Number of inserted words."""
        return sum(self.inserted().values())

    @property
    def deletions(self) -> int:
        """Number of deleted words."""
        return sum(self.deleted().values())

    @property
    def substitutions(self) -> int:
        """Number of substituted words."""
        return sum(self.substituted().values())

    @property
    def errors(self) -> int:
        """Number of errors of all three types."""
        return sum(count for (ref, hyp), count in self.pairs.items() if ref != hyp)

    @property
    def wer(self) -> float:
        """Word error rate in percent; a test set without reference words counts as one word."""
        return 100.0 * self.errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character error rate in percent."""
        totals = self.characters.sum(axis=0, keepdims=True)
        return float(error_rates(totals[:, :3].sum(axis=1), totals[:, 3])[0])

    def word_counts(self) -> Counts:
        """Return (utterances, 2) errors and reference words, in the order of `alignments`."""
        counts = [
            (sum(ref != hyp for ref, hyp in pairs), sum(ref != _GAP for ref, _ in pairs))
            for pairs in self.alignments.values()
        ]
        return np.array(counts, dtype=np.int64)

    def resampled_wer(self, seed: int = BOOTSTRAP_SEED) -> NDArray[np.float64]:
        """Return the word error rates of `BOOTSTRAP_ROUNDS` bootstrap test sets."""
        sums = resample(self.word_counts(), BOOTSTRAP_ROUNDS, seed)
        return error_rates(sums[:, 0], sums[:, 1])

    def inserted(self) -> Counter[tuple[str, str]]:
        """Return the pairs without a reference word."""
        return Counter({pair: count for pair, count in self.pairs.items() if pair[0] == _GAP})

    def deleted(self) -> Counter[tuple[str, str]]:
        """Return the pairs without a hypothesis word."""
        return Counter({pair: count for pair, count in self.pairs.items() if pair[1] == _GAP})

    def substituted(self) -> Counter[tuple[str, str]]:
        """Return the pairs of two words that differ."""
        return Counter({(r, h): count for (r, h), count in self.pairs.items() if _GAP not in (r, h) and r != h})

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data; `wer_interval` is the 95 % confidence interval.

        If words are characters, they contain `unit`.
        """
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
            **({"unit": "character"} if self.by_characters else {}),
        }


def score(utterances: Iterable[Utterance], by_characters: bool = False) -> Score:
    """Align hypotheses with references.

    Args:
      utterances: Utterances of one language.
      by_characters: Align characters instead of words, see `Language.scored_by_characters`.

    Raises:
      ValueError: There are no utterances, or two utterances have the same cut ID.
    """
    alignments: dict[str, list[tuple[str, str]]] = {}
    characters = []
    for utterance in utterances:
        if utterance.cut_id in alignments:
            raise ValueError(f"cut {utterance.cut_id} was decoded twice: expected each cut of a test set once")
        sides = [scored_units(words, by_characters) for words in (utterance.ref, utterance.hyp)]
        alignments[utterance.cut_id] = kaldialign.align(*sides, _GAP)
        ref, hyp = (("" if by_characters else " ").join(units) for units in sides)
        distance = kaldialign.edit_distance(list(ref), list(hyp))
        characters.append((distance["sub"], distance["del"], distance["ins"], len(ref)))
    if not alignments:
        raise ValueError("no utterances to score: the test set is empty")
    pairs = Counter(pair for pairs in alignments.values() for pair in pairs)
    return Score(alignments, pairs, np.array(characters, dtype=np.int64), by_characters)


def write_results(
    folder: Path, test_set: str, suffix: str, utterances: Sequence[Utterance], by_characters: bool = False
) -> Score:
    """Score a test set and write its `recogs-`, `errs-`, `wer-summary-` and, if there are alternatives, `nbest-` files.

    Args:
      folder: Output folder.
      test_set: Name of the test set, for example "mls-english-test".
      suffix: Decoding settings, the last part of the file names.
      utterances: Utterances of the test set, in any order.
      by_characters: See `score`.

    Raises:
      ValueError: There are no utterances.
    """
    if not utterances:
        raise ValueError(f"{test_set}: no utterances were decoded, so there is no word error rate")
    utterances = sorted(utterances, key=lambda utterance: utterance.cut_id)
    result = score(utterances, by_characters)
    recogs = [f"{u.cut_id}:\t{side}={getattr(u, side)}" for u in utterances for side in ("ref", "hyp")]
    _write_lines(layout.result_file(folder, "recogs", test_set, suffix), recogs)
    if any(utterance.alternatives for utterance in utterances):
        _write_lines(
            layout.result_file(folder, "nbest", test_set, suffix, ".jsonl"), map(_alternatives_line, utterances)
        )
    _write_lines(layout.result_file(folder, "errs", test_set, suffix), _error_lines(result))
    settings = [f"settings\t{result.metric}", f"{suffix}\t{result.wer:.2f}"]
    _write_lines(layout.result_file(folder, "wer-summary", test_set, suffix), settings)
    return result


def read_results(folder: Path, test_set: str, suffix: str) -> list[Utterance]:
    """Read a `recogs-` file written by `write_results`.

    Raises:
      ValueError: The file is missing or damaged.
    """
    path = layout.result_file(folder, "recogs", test_set, suffix)
    if not path.is_file():
        raise ValueError(f"{path} not found: decode {test_set} first")
    texts: dict[str, dict[str, list[str]]] = {}
    for line_number, line in enumerate(read_lines(path), start=1):
        cut_id, _, entry = line.partition(":\t")
        side, _, words = entry.partition("=")
        sides = texts.setdefault(cut_id, {})
        try:
            if side in sides:
                raise ValueError("a repeated line")
            sides[side] = _parse_words(words)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:  # of `ast.literal_eval`
            raise ValueError(f"{path}, line {line_number} is damaged ({quote(line)}): decode again") from error
    incomplete = [cut_id for cut_id, sides in texts.items() if set(sides) != {"ref", "hyp"}]
    if incomplete:
        raise ValueError(f"{path} is damaged: {incomplete[0]} lacks its ref= or hyp= line; decode again")
    return [Utterance(cut_id, sides["ref"], sides["hyp"]) for cut_id, sides in texts.items()]


def _parse_words(text: str) -> list[str]:
    words = ast.literal_eval(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a list of words")
    return words


def summarize(
    split: str, method: str, scores: Mapping[str, Score], extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the figures of several languages and the unweighted mean of their error rates.

    Args:
      split: "test" or "dev".
      method: The decoding method.
      scores: Scores by language code, in the order of the table.
      extra: Additional figures to record.

    Raises:
      ValueError: There are no languages.
    """
    if not scores:
        raise ValueError("no languages were decoded, so there is no average word error rate")
    # One seed per language: their test sets are drawn independently.
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
    """Write `wer-summary-all-<corpus>-<split>-<suffix>.txt` and `.json`, and return the table."""
    path = layout.result_file(folder, "wer-summary", f"all-{corpus}-{summary['split']}", suffix)
    table = format_table(summary)
    write_json(path.with_suffix(".json"), {"corpus": corpus, **summary})
    _write_lines(path, table.splitlines())
    return table


def format_table(summary: Mapping[str, Any]) -> str:
    """Format the result of `summarize` as a table with one row per language and the average."""
    columns = ("errors", "words", "sub", "del", "ins", "utterances")
    rows: list[list[Any]] = [
        [
            get_language(code).name + (_BY_CHARACTERS if "unit" in figures else ""),
            figures["wer"],
            _interval_text(figures["wer_interval"]),
            figures["cer"],
            *(figures[column] for column in columns),
        ]
        for code, figures in summary["languages"].items()
    ]
    average = [summary["average_wer"], _interval_text(summary["average_wer_interval"]), summary["average_cer"]]
    rows.append(["average", *average, *[None] * len(columns)])
    table = tabulate(rows, ["language", "WER %", "95 % interval", "CER %", *columns], tablefmt="simple", floatfmt=".2f")
    has_characters = any("unit" in figures for figures in summary["languages"].values())
    return table + (f"\n{_BY_CHARACTERS.strip()}: words are characters, WER is CER" if has_characters else "")


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
        f"%{result.metric} = {result.wer:.2f}",
        f"Errors: {result.insertions} insertions, {result.deletions} deletions, {result.substitutions} substitutions, "
        f"over {result.words} reference {'characters' if result.by_characters else 'words'} ({correct} correct)",
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
    """Format aligned words with adjacent errors in one bracket: `good (mourning->morning) (*->the) all`."""
    words: list[str] = []
    wrong: list[tuple[str, str]] = []
    for pair in [*pairs, ("", "")]:
        if pair[0] != pair[1]:
            wrong.append(pair)
            continue
        if wrong:
            ref, hyp = (" ".join(filter(None, side)) or _PRINTED_GAP for side in zip(*wrong, strict=True))
            words.append(f"({ref}->{hyp})")
            wrong = []
        words.append(pair[0])
    return " ".join(words).rstrip()


def _word_lines(result: Score) -> list[str]:
    """Format counts per word: correct, errors that involve it, in the references, in the hypotheses."""
    correct: Counter[str] = Counter()
    in_ref: Counter[str] = Counter()
    in_hyp: Counter[str] = Counter()
    for (ref, hyp), count in result.pairs.items():
        in_ref[ref] += count
        in_hyp[hyp] += count
        if ref == hyp:
            correct[ref] += count
    rows = [
        (word, correct[word], in_ref[word] + in_hyp[word] - 2 * correct[word], in_ref[word], in_hyp[word])
        for word in in_ref.keys() | in_hyp.keys()
        if word != _GAP
    ]
    return ["{}   {} {} {} {}".format(*row) for row in sorted(rows, key=lambda row: (-row[2], -row[3], row[0]))]
