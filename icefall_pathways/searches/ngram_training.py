"""Train back-off n-gram language models over tokens, and write them as ARPA files.

Witten-Bell smoothing, interpolated: unlike Kneser-Ney, it needs no counts of counts, which the transcripts of a small
corpus are too few to estimate. KenLM trains on large corpora in less memory.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from icefall_pathways.files import atomic_write
from icefall_pathways.searches.ngram import BOS, EOS, LOG10_ZERO, NGrams

_Words = tuple[str, ...]


def train_ngram(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str]) -> NGrams:
    """Train a model: P(w | h) = (count(h w) + types(h) P(w | h')) / (count(h) + types(h)).

    types(h) is the number of distinct words after the history h, and h' is h without its first word. The unigrams are
    interpolated with the uniform distribution (Witten and Bell 1991; Chen and Goodman 1998).

    Args:
      sentences: The words of each sentence.
      order: Order of the model, at least 1.
      vocabulary: Words that get a probability in any case; a word outside it and outside the sentences has none.

    Returns:
      The n-grams; probabilities of listed words and back-off weights of each history sum to 1.

    Raises:
      ValueError: There are no sentences.
    """
    counts = _count(sentences, order)
    if not counts[0]:
        raise ValueError("no transcripts to train an n-gram model on: run the earlier stages of prepare.sh first")
    history_counts: Counter[_Words] = Counter()
    history_types: Counter[_Words] = Counter()
    for entries in counts:
        for words, count in entries.items():
            history_counts[words[:-1]] += count
            history_types[words[:-1]] += 1
    for word in vocabulary:
        counts[0].setdefault((word,), 0)
    probabilities: dict[_Words, float] = {(): 1 / len(counts[0])}
    for entries in counts:
        for words, count in entries.items():
            history = words[:-1]
            types = history_types[history]
            probabilities[words] = (count + types * probabilities[words[1:]]) / (history_counts[history] + types)

    def entry(words: _Words) -> tuple[float, float]:
        types = history_types[words]
        backoff = types / (history_counts[words] + types) if types else 1.0
        return math.log10(probabilities[words]), math.log10(backoff)

    ngrams = [{words: entry(words) for words in entries} for entries in counts]
    if order > 1:
        probabilities[(BOS,)] = 1.0
        ngrams[0][(BOS,)] = (LOG10_ZERO, entry((BOS,))[1])
    return ngrams


def _count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[_Words]]:
    """Count the n-grams of each order that end in a word or at the end of a sentence."""
    counts: list[Counter[_Words]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        words = (BOS, *sentence, EOS)
        for end in range(2, len(words) + 1):
            for length in range(1, min(order, end) + 1):
                counts[length - 1][words[end - length : end]] += 1
    return counts


def write_arpa(path: Path, ngrams: NGrams) -> None:
    """Write an ARPA file, its n-grams sorted."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {order}={len(entries)}\n" for order, entries in enumerate(ngrams, start=1))
        for order, entries in enumerate(ngrams, start=1):
            file.write(f"\n\\{order}-grams:\n")
            for words, (log10, backoff) in sorted(entries.items()):
                weight = f"\t{backoff:.6f}" if order < len(ngrams) else ""
                file.write(f"{log10:.6f}\t{' '.join(words)}{weight}\n")
        file.write("\n\\end\\\n")
