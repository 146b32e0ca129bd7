"""Back-off n-gram language models over tokens, read from ARPA files (written by KenLM, SRILM and others)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.errors import MAX_REASON, quote
from icefall_pathways.files import read_lines
from icefall_pathways.ranges import SignedFloat
from icefall_pathways.searches.automaton import FailureAutomaton
from icefall_pathways.searches.token_scorer import ScorerOptions, path_for_language

BOS, EOS, _UNK = "<s>", "</s>", "<unk>"
LOG10_ZERO = -99.0  # log10 of probability 0 in ARPA files
_MAX_LOG10 = 99.0  # sums of larger numbers would not be finite
_LN10 = math.log(10.0)

NGrams = list[dict[tuple[str, ...], tuple[float, float]]]
"""For each order, starting at 1: n-gram -> (log10 probability, log10 back-off weight)."""


@dataclass(frozen=True)
class NgramOptions(ScorerOptions):
    """Options of the n-gram language model."""

    enabled_by = "ngram_lm"

    ngram_lm: Path | None = None
    """For modified_beam_search: ARPA file of an n-gram language model over tokens, for shallow fusion. {language} in
    the path is replaced by the language code."""

    ngram_lm_scale: SignedFloat = 0.3
    """Weight of the n-gram language model; a negative weight subtracts its scores."""

    def build_scorer(self, tokenizer: Tokenizer, language: str) -> FailureAutomaton:
        """Build the language model; see `ScorerOptions.build_scorer`."""
        return read_ngram(path_for_language(self.ngram_lm, language), tokenizer.symbols, self.ngram_lm_scale)

    def scorer_name_part(self) -> str:
        """Return the options that change the output, as a part of result file names."""
        return f"ngram-lm-scale-{self.ngram_lm_scale:g}"


def read_ngram(path: Path, symbols: Sequence[str], scale: float = 1.0) -> FailureAutomaton:
    """Read a language model for shallow fusion.

    The end of the sentence is not scored, because a stream's end is not known in advance. Tokens that the model does
    not list score as its <unk>, or have probability 0 if it has none; see `_build_automaton` for a negative scale.

    Args:
      path: An ARPA file, optionally compressed (.gz), over the tokens of the model (not words).
      symbols: The tokens ordered by ID, starting with the blank.
      scale: Factor of the log-probabilities.

    Raises:
      ValueError: The file is missing or damaged, or does not match the tokens.
    """
    ngrams = read_arpa(path)
    ids = {symbol: token for token, symbol in enumerate(symbols) if token != 0}
    unknown = sorted(word for (word,) in ngrams[0] if word not in ids and word not in (BOS, EOS, _UNK))
    if unknown:
        raise ValueError(
            f"{path}: {quote(unknown[0])} and {len(unknown) - 1} other entries are not tokens of the model; train the "
            "n-gram model on transcripts tokenized by the SentencePiece model of the recognizer"
        )
    for shorter, longer in pairwise(ngrams):
        for words in longer:
            if words[:-1] not in shorter:
                raise ValueError(f"{path} is damaged: the context of {quote(' '.join(words))} is not listed")
    return _build_automaton(ngrams, ids, len(symbols), scale)


def read_arpa(path: Path) -> NGrams:
    """Read an ARPA file.

    Raises:
      ValueError: The file is missing or damaged; the message gives the line.
    """
    if not path.is_file():
        raise ValueError(f"language model {path} not found: pass an ARPA file to --ngram-lm")
    lines = enumerate((line.strip() for line in read_lines(path)), start=1)
    try:
        counts = _read_counts(lines)
        ngrams = [_read_order(order, lines) for order in range(1, len(counts) + 1)]
    except (ValueError, OSError, StopIteration) as error:
        reason = str(error)[:MAX_REASON] or "unexpected end of file"
        raise ValueError(f"{path} is damaged or not an ARPA file: {reason}") from error
    actual = [len(entries) for entries in ngrams]
    if actual != counts:
        raise ValueError(f"{path} is damaged: its header lists {counts} n-grams per order, but it has {actual}")
    return ngrams


def _read_counts(lines: Iterator[tuple[int, str]]) -> list[int]:
    while next(lines)[1] != "\\data\\":
        pass
    counts: list[int] = []
    for line_number, line in lines:
        if line == "\\1-grams:" and counts:
            return counts
        if line:
            order, _, count = line.removeprefix("ngram ").partition("=")
            if order.strip() != str(len(counts) + 1) or not count.strip().isdecimal():
                raise ValueError(f'line {line_number} is {quote(line)}, expected "ngram {len(counts) + 1}=COUNT"')
            counts.append(int(count))
    raise ValueError("the section of 1-grams is missing")


def _read_order(order: int, lines: Iterator[tuple[int, str]]) -> dict[tuple[str, ...], tuple[float, float]]:
    """Read the n-grams of one order, up to the header of the next."""
    entries: dict[tuple[str, ...], tuple[float, float]] = {}
    for line_number, line in lines:
        if line in ("\\end\\", f"\\{order + 1}-grams:"):
            return entries
        fields = line.split()
        if not fields:
            continue
        if not order + 1 <= len(fields) <= order + 2:
            raise ValueError(
                f"line {line_number} is {quote(line)}, expected log10, {order} words and an optional back-off weight"
            )
        log10, backoff = float(fields[0]), float(fields[order + 1]) if len(fields) == order + 2 else 0.0
        if not (log10 < _MAX_LOG10 and backoff < _MAX_LOG10):
            raise ValueError(
                f"line {line_number} is {quote(line)}: expected finite numbers of less than {_MAX_LOG10:g}"
            )
        entries[tuple(fields[1 : order + 1])] = (log10, backoff)
    raise ValueError("it ends without \\end\\")


def _build_automaton(ngrams: NGrams, ids: Mapping[str, int], vocab_size: int, scale: float) -> FailureAutomaton:
    """Build an automaton whose states are the histories of the model: the listed n-grams below the highest order.

    A negative scale would turn probability 0 into the largest bonus of all. The model then has no evidence against such
    a token, so that it scores as the least probable listed one.
    """
    log10_zero, backoff_zero = LOG10_ZERO, LOG10_ZERO
    if scale < 0:
        listed = (log10 for (word,), (log10, _) in ngrams[0].items() if word in ids and word != _UNK)
        log10_zero, backoff_zero = min((log10 for log10 in listed if log10 > LOG10_ZERO), default=0.0), 0.0
    backoffs: dict[tuple[str, ...], float] = {(): 0.0}
    for entries in ngrams[:-1]:
        for words, (_, backoff) in entries.items():
            if words[-1] != EOS:
                backoffs[words] = backoff if backoff > LOG10_ZERO else backoff_zero
    states = {words: state for state, words in enumerate(sorted(backoffs, key=len))}

    def longest_history(words: tuple[str, ...]) -> tuple[str, ...]:
        while words not in states:
            words = words[1:]
        return words

    arcs: list[dict[int, tuple[int, float]]] = [{} for _ in states]
    for entries in ngrams:
        for words, (log10, _) in entries.items():
            if words[-1] in ids:
                log10 = log10 if log10 > LOG10_ZERO else log10_zero
                arcs[states[words[:-1]]][ids[words[-1]]] = (states[longest_history(words)], log10 * _LN10)
    failures = [(states[longest_history(words[1:])], backoffs[words] * _LN10) for words in states]
    unknown = ngrams[0].get((_UNK,), (LOG10_ZERO, 0.0))[0]
    unknown = unknown if unknown > LOG10_ZERO else log10_zero
    start = states[longest_history((BOS,))]
    return FailureAutomaton(arcs, failures, vocab_size, start, default_score=unknown * _LN10, scale=scale)
