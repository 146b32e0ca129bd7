"""Contextual biasing with hotwords (a context graph, as in icefall)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.errors import quote
from icefall_pathways.files import read_lines
from icefall_pathways.ranges import Range, SignedFloat, check_number
from icefall_pathways.searches.automaton import FailureAutomaton
from icefall_pathways.searches.token_scorer import ScorerOptions, path_for_language

_SCORES = Range(-1e4, 1e4)  # of phrases; sums of much larger ones would not be finite


@dataclass(frozen=True)
class Phrase:
    """A hotword: one or more words.

    Attributes:
      tokens: Token IDs.
      score: Score per token, added to the log-probability.
    """

    tokens: tuple[int, ...]
    score: float


@dataclass
class _Node:
    """A node of the trie: a prefix of phrases.

    Attributes:
      depth: Number of tokens.
      children: Token -> node of the prefix extended by this token.
      fail: Node of the longest proper suffix that is also a prefix of a phrase.
      output_score: Total score of the phrases that end here, including suffixes of this prefix.
      partial_score: Maximum score of the phrases that are incomplete here, which is granted in advance.
    """

    depth: int
    children: dict[int, int] = field(default_factory=dict)
    fail: int = 0
    output_score: float = 0.0
    partial_score: float = 0.0


def build_context_graph(phrases: Sequence[Phrase], vocab_size: int) -> FailureAutomaton:
    """Build the Aho-Corasick automaton that scores hotwords.

    Every occurrence of every phrase, including overlapping ones, scores `score` times its number of tokens. The score
    is granted token by token, so that the beam keeps a partial match, and is subtracted again if the match fails.

    Args:
      phrases: Phrases with at least one token each; a repeated phrase has the last of its scores.
      vocab_size: Number of tokens, including the blank.

    Raises:
      ValueError: There are no phrases, a phrase is empty, or a token is not in the vocabulary.
    """
    nodes = _build_trie(phrases, vocab_size)
    _link_failures(nodes)
    arcs = [
        {
            token: (target, nodes[target].partial_score - node.partial_score + nodes[target].output_score)
            for token, target in node.children.items()
        }
        for node in nodes
    ]
    failures = [(node.fail, nodes[node.fail].partial_score - node.partial_score) for node in nodes]
    return FailureAutomaton(arcs, failures, vocab_size, final_scores=[-node.partial_score for node in nodes])


@dataclass(frozen=True)
class HotwordOptions(ScorerOptions):
    """Options of hotwords."""

    enabled_by = "context_file"

    context_file: Path | None = None
    """For modified_beam_search: file of hotwords, one phrase per line, each optionally followed by its own score
    (" :3.0"). {language} in the path is replaced by the language code."""

    context_score: SignedFloat = 2.0
    """Score per token of a hotword that is added to the log-probability."""

    def build_scorer(self, tokenizer: Tokenizer, language: str) -> FailureAutomaton:
        """Build the context graph; see `ScorerOptions.build_scorer`."""
        phrases = read_context_file(path_for_language(self.context_file, language), tokenizer, self.context_score)
        return build_context_graph(phrases, tokenizer.vocab_size)

    def scorer_name_part(self) -> str:
        """Return the options that change the output, as a part of result file names."""
        return f"context-score-{self.context_score:g}"


def read_context_file(path: Path, tokenizer: Tokenizer, score: float) -> list[Phrase]:
    """Read hotwords: one phrase per line, optionally followed by its own score (" :2.5"); empty lines are skipped.

    Args:
      path: A UTF-8 text file.
      tokenizer: The tokenizer of the model.
      score: Score per token of phrases without a score of their own.

    Raises:
      ValueError: The file is missing or has no phrases, the tokenizer does not cover a phrase, or a score is not
        from -10000 to 10000.
    """
    if not path.is_file():
        raise ValueError(f"hotwords file {path} not found: pass a file with one phrase per line to --context-file")
    phrases = []
    for line_number, line in enumerate(read_lines(path), start=1):
        text, own_score = _split_score(line)
        if not text:
            continue
        if own_score is not None:
            check_number(f"{path}, line {line_number}: the score of {quote(text)}", own_score, _SCORES)
        tokens = tokenizer.encode([text])[0]
        if not tokens or tokenizer.unknown_id in tokens:
            raise ValueError(
                f"{path}, line {line_number}: {quote(text)} has letters that no token of the model covers; write it as "
                "in the training transcripts (lower case, numbers in words)"
            )
        phrases.append(Phrase(tuple(tokens), score if own_score is None else own_score))
    if not phrases:
        raise ValueError(f"{path} has no hotwords: expected one phrase per line")
    return phrases


def _split_score(line: str) -> tuple[str, float | None]:
    text, colon, score = " ".join(line.split()).rpartition(" :")
    try:
        return (text.strip(), float(score)) if colon else (line.strip(), None)
    except ValueError:
        return line.strip(), None


def _build_trie(phrases: Sequence[Phrase], vocab_size: int) -> list[_Node]:
    if not phrases:
        raise ValueError("no hotwords: a context graph needs at least one phrase")
    nodes = [_Node(depth=0)]
    for phrase in {phrase.tokens: phrase for phrase in phrases}.values():
        if not phrase.tokens or not all(0 < token < vocab_size for token in phrase.tokens):
            raise ValueError(f"hotword {phrase.tokens}: expected at least one token, from 1 to {vocab_size - 1}")
        node = nodes[0]
        for token in phrase.tokens:
            # The last node of a phrase gets no partial score from it: the phrase is complete there.
            node.partial_score = max(node.partial_score, node.depth * phrase.score)
            if token not in node.children:
                node.children[token] = len(nodes)
                nodes.append(_Node(depth=node.depth + 1))
            node = nodes[node.children[token]]
        node.output_score = phrase.score * len(phrase.tokens)
    return nodes


def _link_failures(nodes: list[_Node]) -> None:
    """Set the failure links breadth first, and propagate scores along them."""
    queue = deque(nodes[0].children.values())
    while queue:
        node = nodes[queue.popleft()]
        node.output_score += nodes[node.fail].output_score
        node.partial_score = max(node.partial_score, nodes[node.fail].partial_score)
        for token, target in node.children.items():
            fail = node.fail
            while fail and token not in nodes[fail].children:
                fail = nodes[fail].fail
            nodes[target].fail = nodes[fail].children.get(token, 0)
            queue.append(target)
