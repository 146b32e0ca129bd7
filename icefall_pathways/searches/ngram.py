"""Back-off n-gram language models over tokens, read from ARPA files (kenlm, SRILM and others write them)."""

import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from icefall_pathways.searches.automaton import FailureAutomaton

_BEGIN, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_NEVER = -99.0  # ARPA's way to write the logarithm of zero
_LN10 = math.log(10.0)

NGrams = list[dict[tuple[str, ...], tuple[float, float]]]


def read_ngram(path: Path, symbols: Sequence[str], scale: float = 1.0) -> FailureAutomaton:
    """Read a language model for shallow fusion.

    The end of the sentence is not scored: a stream does not know that it ends.

    Args:
      path: An ARPA file, .gz or not, of the model's tokens (not of words).
      symbols: The tokens in the order of their ids, the blank first.
      scale: The logarithms of the probabilities are multiplied by it.

    Raises:
      ValueError: The file is missing, damaged, or of other tokens.
    """
    ngrams = read_arpa(path)
    ids = {symbol: token for token, symbol in enumerate(symbols) if token != 0}
    strange = sorted(word for (word,) in ngrams[0] if word not in ids and word not in (_BEGIN, _END, _UNKNOWN))
    if strange:
        raise ValueError(
            f"{path}: {strange[0]!r} and {len(strange) - 1} other entries are no tokens of the model; make the n-gram "
            "model from transcripts cut by the same SentencePiece model"
        )
    for shorter, longer in pairwise(ngrams):
        for words in longer:
            if words[:-1] not in shorter:
                raise ValueError(f"{path} is damaged: the context of {' '.join(words)!r} is not listed")
    return _build(ngrams, ids, len(symbols), scale)


def read_arpa(path: Path) -> NGrams:
    """Read an ARPA file.

    Returns:
      For each order from 1 on: the n-gram's words -> log10 of its probability, log10 of its back-off weight.

    Raises:
      ValueError: The file is missing or damaged; the message says where.
    """
    if not path.is_file():
        raise ValueError(f"no language model {path}: name an ARPA file with --ngram-lm")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        lines = enumerate((line.strip() for line in file), start=1)
        try:
            counts = _read_counts(lines)
            ngrams = [_read_order(order, lines) for order in range(1, len(counts) + 1)]
        except (ValueError, EOFError, OSError, StopIteration) as error:
            raise ValueError(f"{path} is no ARPA file, or a damaged one: {error or 'it ends too early'}") from error
    found = [len(entries) for entries in ngrams]
    if found != counts:
        raise ValueError(f"{path} is damaged: its header promises {counts} n-grams per order, it has {found}")
    return ngrams


def _read_counts(lines: Iterator[tuple[int, str]]) -> list[int]:
    while next(lines)[1] != "\\data\\":
        pass
    counts: list[int] = []
    for number, line in lines:
        if line == "\\1-grams:" and counts:
            return counts
        if line:
            order, _, count = line.removeprefix("ngram ").partition("=")
            if order.strip() != str(len(counts) + 1) or not count.strip().isdecimal():
                raise ValueError(f'line {number} is {line!r}, expected "ngram {len(counts) + 1}=COUNT"')
            counts.append(int(count))
    raise ValueError("it has no 1-grams")


def _read_order(order: int, lines: Iterator[tuple[int, str]]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Read the n-grams of one order, up to the headline of the next."""
    entries: dict[tuple[str, ...], tuple[float, float]] = {}
    for number, line in lines:
        if line in ("\\end\\", f"\\{order + 1}-grams:"):
            return entries
        fields = line.split()
        if not fields:
            continue
        if not order + 1 <= len(fields) <= order + 2:
            raise ValueError(f"line {number} is {line!r}, expected log10, {order} words and perhaps a back-off weight")
        backoff = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
        entries[tuple(fields[1 : order + 1])] = (float(fields[0]), backoff)
    raise ValueError("it ends without \\end\\")


def _build(ngrams: NGrams, ids: Mapping[str, int], vocab_size: int, scale: float) -> FailureAutomaton:
    """Make an automaton whose states are what the model remembers: the listed n-grams below the highest order."""
    backoffs: dict[tuple[str, ...], float] = {(): 0.0}
    for entries in ngrams[:-1]:
        backoffs.update((words, backoff) for words, (_, backoff) in entries.items() if words[-1] != _END)
    states = {words: state for state, words in enumerate(sorted(backoffs, key=len))}

    def remembered(words: tuple[str, ...]) -> tuple[str, ...]:
        while words not in states:
            words = words[1:]
        return words

    arcs: list[dict[int, tuple[int, float]]] = [{} for _ in states]
    for entries in ngrams:
        for words, (log10, _) in entries.items():
            if words[-1] in ids:
                arcs[states[words[:-1]]][ids[words[-1]]] = (states[remembered(words)], log10 * _LN10)
    failures = [(states[remembered(words[1:])], backoffs[words] * _LN10) for words in states]
    unknown = ngrams[0].get((_UNKNOWN,), (_NEVER, 0.0))[0]
    start = states[remembered((_BEGIN,))]
    return FailureAutomaton(arcs, failures, vocab_size, start, default_score=unknown * _LN10, scale=scale)
