"""The options of the searches, and the search they describe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.searches import FastBeamSearch, GreedySearch, ModifiedBeamSearch, Search
from icefall_pathways.searches.automaton import FailureAutomaton
from icefall_pathways.searches.base import TransducerHead
from icefall_pathways.searches.context_graph import build_context_graph, read_context_file
from icefall_pathways.searches.ngram import read_ngram


@dataclass(frozen=True)
class SearchConfig:
    """How to search."""

    decoding_method: Literal["greedy_search", "modified_beam_search", "fast_beam_search"] = "greedy_search"
    """The search."""

    blank_penalty: float = 0.0
    """Subtracted from the blank's logit: the larger, the fewer deletions and the more insertions."""

    beam: float = 20.0
    """For fast_beam_search: hypotheses worse than the best by more than this log-probability are dropped."""

    max_contexts: int = 8
    """For fast_beam_search: different last tokens kept per stream."""

    max_states: int = 64
    """For fast_beam_search: lattice states kept per stream and frame."""

    context_file: Path | None = None
    """Hotwords for modified_beam_search, a phrase a line, " :3.0" at its end for a score of its own; {language} in the
    path stands for the language's code."""

    context_score: float = 2.0
    """Added to the log-probability of a hotword, per token of it."""

    ngram_lm: Path | None = None
    """ARPA file of an n-gram model over tokens, for shallow fusion in modified_beam_search; {language} as above."""

    ngram_lm_scale: float = 0.3
    """Weight of the n-gram model; below 0 it is subtracted."""

    def __post_init__(self) -> None:
        for name in ("context_file", "ngram_lm"):
            if getattr(self, name) and self.decoding_method != "modified_beam_search":
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} works with --decoding-method modified_beam_search, not with {self.decoding_method}"
                )

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses per utterance in modified_beam_search."""
        raise NotImplementedError

    @property
    def search_suffix(self) -> str:
        """The options that change what is recognised, as the names of result files tell them."""
        parts: list[str] = [self.decoding_method]
        if self.decoding_method == "modified_beam_search":
            parts.append(f"beam-size-{self.num_hypotheses}")
        elif self.decoding_method == "fast_beam_search":
            parts.append(f"beam-{self.beam:g}-max-contexts-{self.max_contexts}-max-states-{self.max_states}")
        if self.blank_penalty:
            parts.append(f"blank-penalty-{self.blank_penalty:g}")
        if self.context_file:
            parts.append(f"context-score-{self.context_score:g}")
        if self.ngram_lm:
            parts.append(f"ngram-lm-scale-{self.ngram_lm_scale:g}")
        return "-".join(parts)


def make_search(config: SearchConfig, model: TransducerHead, tokenizer: Tokenizer, language: str) -> Search:
    """Make the search that `config` describes.

    Args:
      config: The options.
      model: Where it is, the search is.
      tokenizer: The model's.
      language: The code for which hotwords and language model are read.

    Raises:
      ValueError: An option has an impossible value, or a file is missing or damaged.
    """
    if config.decoding_method == "greedy_search":
        return GreedySearch(model, config.blank_penalty)
    if config.decoding_method == "fast_beam_search":
        return FastBeamSearch(model, config.beam, config.max_contexts, config.max_states, config.blank_penalty)
    automata = _read_automata(config, tokenizer, language)
    return ModifiedBeamSearch(model, config.num_hypotheses, config.blank_penalty, automata)


def _read_automata(config: SearchConfig, tokenizer: Tokenizer, language: str) -> Sequence[FailureAutomaton]:
    automata = []
    if config.context_file:
        phrases = read_context_file(_of_language(config.context_file, language), tokenizer, config.context_score)
        automata.append(build_context_graph(phrases, tokenizer.vocab_size))
    if config.ngram_lm:
        automata.append(read_ngram(_of_language(config.ngram_lm, language), tokenizer.symbols, config.ngram_lm_scale))
    return automata


def _of_language(path: Path, language: str) -> Path:
    return Path(str(path).replace("{language}", language))
