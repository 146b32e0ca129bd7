"""Hotwords: phrases that a search is to prefer, whatever the audio says a little less than clearly."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.searches.automaton import FailureAutomaton


@dataclass(frozen=True)
class Phrase:
    """A hotword or several.

    Attributes:
      tokens: As the tokenizer cuts it.
      score: Added to the log-probability per token of it.
    """

    tokens: tuple[int, ...]
    score: float


@dataclass
class _Node:
    """A prefix of phrases, as icefall's context graph has it.

    Attributes:
      depth: Its length in tokens.
      next: The prefixes that are one token longer.
      fail: The node of the longest other end of it that is a prefix too.
      award: What phrases that end here earn, those that are ends of it included.
      promise: What is lent to a phrase that has begun and may yet be finished: the most over all that are under way.
    """

    depth: int
    next: dict[int, int] = field(default_factory=dict)
    fail: int = 0
    award: float = 0.0
    promise: float = 0.0


def build_context_graph(phrases: Sequence[Phrase], vocab_size: int) -> FailureAutomaton:
    """The automaton of Aho and Corasick that gives phrases their bonus.

    Every occurrence of every phrase, also inside or across others, earns `score` times its number of tokens. It is lent
    token by token while the phrase is under way, so that the beam does not lose it, and taken back if it breaks off.

    Args:
      phrases: With at least one token each; of one given twice the last score counts.
      vocab_size: Tokens, the blank included.

    Raises:
      ValueError: There is no phrase, or an empty one, or a token is not in the vocabulary.
    """
    nodes = _build_trie(phrases, vocab_size)
    _link_failures(nodes)
    arcs = [
        {
            token: (target, nodes[target].promise - node.promise + nodes[target].award)
            for token, target in node.next.items()
        }
        for node in nodes
    ]
    failures = [(node.fail, nodes[node.fail].promise - node.promise) for node in nodes]
    return FailureAutomaton(arcs, failures, vocab_size, final=[-node.promise for node in nodes])


def read_context_file(path: Path, tokenizer: Tokenizer, score: float) -> list[Phrase]:
    """Read hotwords: a phrase a line, " :2.5" at its end gives it a score of its own; empty lines are passed over.

    Args:
      path: UTF-8 text.
      tokenizer: The model's.
      score: Of phrases without a score of their own.

    Raises:
      ValueError: The file is missing, holds no phrase, or a phrase has letters that the model does not know.
    """
    if not path.is_file():
        raise ValueError(f"no file of hotwords {path}: name one with --context-file, a phrase a line")
    phrases = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text, own = _split_score(line)
        if not text:
            continue
        tokens = tokenizer.encode([text])[0]
        if tokenizer.unknown_id in tokens:
            raise ValueError(
                f"{path}, line {number}: {text!r} has letters that the model has no token for; write it as in the "
                "training transcripts (lower case, numbers in words)"
            )
        phrases.append(Phrase(tuple(tokens), score if own is None else own))
    if not phrases:
        raise ValueError(f"{path} has no hotword: expected a phrase a line")
    return phrases


def _split_score(line: str) -> tuple[str, float | None]:
    text, colon, number = line.rpartition(" :")
    try:
        return (text.strip(), float(number)) if colon else (line.strip(), None)
    except ValueError:
        return line.strip(), None


def _build_trie(phrases: Sequence[Phrase], vocab_size: int) -> list[_Node]:
    if not phrases:
        raise ValueError("no hotwords: a context graph needs at least one phrase")
    nodes = [_Node(depth=0)]
    for phrase in {phrase.tokens: phrase for phrase in phrases}.values():
        if not phrase.tokens or not all(0 < token < vocab_size for token in phrase.tokens):
            raise ValueError(f"hotword {phrase.tokens}: expected tokens from 1 to {vocab_size - 1}, at least one")
        at = 0
        for token in phrase.tokens:
            # A node's own promise is made where a phrase goes on from it, not where it ends.
            nodes[at].promise = max(nodes[at].promise, nodes[at].depth * phrase.score)
            if token not in nodes[at].next:
                nodes[at].next[token] = len(nodes)
                nodes.append(_Node(depth=nodes[at].depth + 1))
            at = nodes[at].next[token]
        nodes[at].award = phrase.score * len(phrase.tokens)
    return nodes


def _link_failures(nodes: list[_Node]) -> None:
    """Set failures, shorter prefixes first, and pass on what they award and promise."""
    waiting = deque(nodes[0].next.values())
    while waiting:
        at = nodes[waiting.popleft()]
        at.award += nodes[at.fail].award
        at.promise = max(at.promise, nodes[at.fail].promise)
        for token, target in at.next.items():
            fail = at.fail
            while fail and token not in nodes[fail].next:
                fail = nodes[fail].fail
            nodes[target].fail = nodes[fail].next.get(token, 0)
            waiting.append(target)
