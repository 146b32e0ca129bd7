"""A new language model is one module and one line in SCORERS: this file registers a small recurrent one and uses it."""

import importlib
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import all_paths, all_sequences, cases, make_case_head, plain_beam_search, run
from torch import nn

from icefall_pathways.options import parse
from icefall_pathways.searches import ModifiedBeamSearch, SearchState
from icefall_pathways.searches.scorers import SCORERS
from icefall_pathways.searches.token_scorer import ScorerOptions

_HIDDEN_SIZE = 4
_MODULES = ("shallow_fusion", "modified_beam", "registry", "config")  # that read SCORERS when they are imported


class RnnScorer:
    """A recurrent language model with one row per state in a table of hidden states; see `TokenScorer`."""

    def __init__(self, vocab_size, seed, scale=1.0):
        self.vocab_size, self.scale, self.start = vocab_size, scale, 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocab_size, _HIDDEN_SIZE)
            self.cell = nn.GRUCell(_HIDDEN_SIZE, _HIDDEN_SIZE)
            self.output = nn.Linear(_HIDDEN_SIZE, vocab_size)
            self.output.weight.data *= 4
        self.hidden = torch.zeros(1, _HIDDEN_SIZE)

    def to(self, device):
        for module in (self.embedding, self.cell, self.output):
            module.to(device)
        self.hidden = self.hidden.to(device)
        return self

    @torch.no_grad()
    def scores(self, states):
        return self.scale * self.output(self.hidden[states]).log_softmax(dim=-1)

    @torch.no_grad()
    def advance(self, states, tokens):
        first = len(self.hidden)
        self.hidden = torch.cat([self.hidden, self.cell(self.embedding(tokens), self.hidden[states])])
        return torch.arange(first, len(self.hidden), device=states.device)

    def final_scores(self, states):
        return torch.zeros_like(states, dtype=torch.float32)

    @torch.no_grad()
    def total(self, tokens):
        """Return the score of a whole sequence, computed without states."""
        hidden, total = torch.zeros(_HIDDEN_SIZE), 0.0
        for token in tokens:
            total += self.scale * self.output(hidden).log_softmax(dim=-1)[token].item()
            hidden = self.cell(self.embedding.weight[token], hidden)
        return total


@dataclass(frozen=True)
class RnnOptions(ScorerOptions):
    """Options of the recurrent language model."""

    enabled_by = "rnn_lm"

    rnn_lm: int | None = None
    """Seed of its weights."""

    rnn_lm_scale: float = 1.0
    """Weight of the recurrent language model."""

    def build_scorer(self, tokenizer, language):
        return RnnScorer(tokenizer.vocab_size, self.rnn_lm, self.rnn_lm_scale)

    def scorer_name_part(self):
        return f"rnn-lm-scale-{self.rnn_lm_scale:g}"


@pytest.fixture
def config_module(monkeypatch):
    """Import second copies of the modules that depend on the registry, with an additional line in it."""
    package = importlib.import_module("icefall_pathways.searches")
    monkeypatch.setitem(SCORERS, "rnn", RnnOptions)
    for name in _MODULES:
        monkeypatch.setattr(package, name, getattr(package, name))  # restored after the test
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}")
    return [importlib.import_module(f"{package.__name__}.{name}") for name in _MODULES][-1]


def test_a_new_language_model_needs_one_registry_line(config_module, make_head):
    argv = ["--decoding-method", "modified_beam_search", "--rnn-lm", "3", "--rnn-lm-scale", "0.5"]
    config = parse(config_module.SearchConfig, "", argv)
    search = config.build_search(make_head(4), SimpleNamespace(vocab_size=4), "en")
    assert [(type(scorer), scorer.scale) for scorer in search.scorers] == [(RnnScorer, 0.5)]
    assert config.search_suffix == "modified_beam_search-beam-size-4-rnn-lm-scale-0.5" and config.depends_on_language
    with pytest.raises(ValueError, match="--rnn-lm-scale has no effect without --rnn-lm"):
        config_module.SearchConfig(decoding_method="modified_beam_search", rnn_lm_scale=2.0)
    with pytest.raises(ValueError, match="--rnn-lm works with --decoding-method modified_beam_search"):
        config_module.SearchConfig(rnn_lm=3)


@settings(max_examples=5, deadline=None)
@given(cases(max_frames=4, max_vocab_size=3), st.integers(0, 10**6))
def test_a_wide_beam_equals_exhaustive_rescoring(make_head, case, seed):
    """Offline and in chunks: all sequences, and the best one by the sum of both scores per token."""
    head, lens, context_size = make_case_head(make_head, case), case["lens"], case["context_size"]
    scorer = RnnScorer(case["vocab_size"], seed)
    search = ModifiedBeamSearch(head, 3**4, scorers=[scorer])
    for sizes in (None, case["sizes"]):
        state = run(search, case["encoder_out"], lens, sizes)
        streams = zip(search.results(state), search.n_best(state), case["encoder_out"], lens, strict=True)
        for best, hypotheses, out, length in streams:
            sequences = all_sequences(all_paths(head, out[:length]))
            assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(sequences, abs=1e-4)
            bonus = {tokens: scorer.total(tokens) for tokens in sequences}
            assert {tuple(x.tokens): x.bonus for x in hypotheses} == pytest.approx(bonus, abs=1e-4)
            ranks = {x: (sequences[x] + bonus[x]) / (len(x) + context_size) for x in sequences}
            assert ranks[tuple(best.tokens)] == pytest.approx(max(ranks.values()), abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(cases(), st.integers(0, 10**6))
def test_a_narrow_beam_adds_the_scores_before_it_prunes(make_head, case, seed):
    head, scorer = make_case_head(make_head, case), RnnScorer(case["vocab_size"], seed)
    search = ModifiedBeamSearch(head, case["beam_size"], scorers=[scorer])
    n_best = search.n_best(run(search, case["encoder_out"], case["lens"], case["sizes"]))
    for hypotheses, out, length in zip(n_best, case["encoder_out"], case["lens"], strict=True):
        expected = plain_beam_search(head, out[:length], case["beam_size"], bonus=scorer.total)
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-4)


def test_a_language_model_changes_the_best_hypothesis_in_streams_of_any_age(make_head):
    torch.manual_seed(1)
    head, out, lens = make_head(5, seed=2), torch.randn(2, 12, 8) * 2, torch.tensor([12, 9])
    plain, fused = ModifiedBeamSearch(head), ModifiedBeamSearch(head, scorers=[RnnScorer(5, 7)])
    whole = run(fused, out, lens)
    tokens = [hypothesis.tokens for hypothesis in fused.results(whole)]
    assert tokens != [hypothesis.tokens for hypothesis in plain.results(run(plain, out, lens))]
    old, new = run(fused, out[:1, :5], torch.tensor([5])), fused.init(1)
    mixed = SearchState.join([*old.split(), *new.split()])
    for start in range(0, 12, 3):
        chunk = torch.cat(
            [nn.functional.pad(out[:1], (0, 0, 0, 8))[:, 5 + start : 8 + start], out[1:, start : start + 3]]
        )
        mixed = fused.advance(mixed, chunk, (torch.tensor([7, 9]) - start).clamp(0, 3))
    assert [hypothesis.tokens for hypothesis in fused.results(mixed)] == tokens
    restarted = fused.reset_hypothesis(mixed)
    assert bool(restarted.scorer_states.eq(0).all()) and [x.tokens for x in fused.results(restarted)] == [[], []]
