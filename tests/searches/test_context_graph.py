"""Contextual biasing with hotwords, compared with a substring search."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import all_paths, all_sequences, cases, make_case_head, plain_beam_search, run

from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.searches import ModifiedBeamSearch
from icefall_pathways.searches.automaton import FailureAutomaton
from icefall_pathways.searches.context_graph import Phrase, build_context_graph, read_context_file

VOCAB_SIZE = 4
_tokens = st.integers(1, VOCAB_SIZE - 1)
_phrases = st.dictionaries(
    st.lists(_tokens, min_size=1, max_size=4).map(tuple), st.sampled_from([0.5, 1.0, 2.0, -1.5]), min_size=1, max_size=5
)


def _graph(scores, vocab_size=VOCAB_SIZE):
    return build_context_graph([Phrase(tokens, score) for tokens, score in scores.items()], vocab_size)


def _run_automaton(automaton, tokens):
    """Return the total score of `tokens` and the final state."""
    state, total = torch.tensor([automaton.start]), 0.0
    for token in tokens:
        total += automaton.scores(state)[0, token].item()
        state = automaton.advance(state, torch.tensor([token]))
    return total, state


def _complete_bonus(scores, tokens):
    """Return the bonus by definition: every occurrence of every phrase adds its score per token."""
    return sum(
        score * len(phrase)
        for phrase, score in scores.items()
        for start in range(len(tokens))
        if tuple(tokens[start : start + len(phrase)]) == phrase
    )


def _partial_bonus(scores, tokens):
    """Return the largest score of a partial match: a proper prefix of a phrase at the end of `tokens`."""
    partial = [
        score * length
        for phrase, score in scores.items()
        for length in range(1, len(phrase))
        if length <= len(tokens) and tuple(tokens[-length:]) == phrase[:length]
    ]
    return max([0.0, *partial])


@settings(max_examples=150, deadline=None)
@given(_phrases, st.lists(_tokens, max_size=12))
def test_bonus_equals_substring_search(scores, tokens):
    graph = _graph(scores)
    total, state = _run_automaton(graph, tokens)
    assert total == pytest.approx(_complete_bonus(scores, tokens) + _partial_bonus(scores, tokens), abs=1e-4)
    assert total + graph.final_scores(state).item() == pytest.approx(_complete_bonus(scores, tokens), abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(cases(), st.data())
def test_beam_search_adds_the_bonus(make_head, case, data):
    """Batched and chunked, compared with a plain beam search that searches every hypothesis for the phrases."""
    tokens = st.lists(st.integers(1, case["vocab_size"] - 1), min_size=1, max_size=3).map(tuple)
    scores = data.draw(st.dictionaries(tokens, st.sampled_from([0.5, 2.0]), min_size=1, max_size=4))
    head, context_size = make_case_head(make_head, case), case["context_size"]
    search = ModifiedBeamSearch(head, case["beam_size"], scorers=[_graph(scores, case["vocab_size"])])
    state = run(search, case["encoder_out"], case["lens"], case["sizes"])
    streams = zip(search.results(state), search.n_best(state), case["encoder_out"], case["lens"], strict=True)
    for best, hypotheses, out, length in streams:
        expected = plain_beam_search(
            head,
            out[:length],
            case["beam_size"],
            bonus=lambda tokens: _complete_bonus(scores, tokens) + _partial_bonus(scores, tokens),
        )
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-4)
        complete = {tokens: _complete_bonus(scores, tokens) for tokens in expected}
        assert {tuple(x.tokens): x.bonus for x in hypotheses} == pytest.approx(complete, abs=1e-4)
        scores_per_token = {
            tokens: (expected[tokens] + complete[tokens]) / (len(tokens) + context_size) for tokens in expected
        }
        assert scores_per_token[tuple(best.tokens)] == pytest.approx(max(scores_per_token.values()), abs=1e-4)


def test_hotword_outranks_a_more_probable_hypothesis(make_head):
    head, out = make_head(3, seed=4), torch.randn(1, 4, 8) * 2
    sequences = all_sequences(all_paths(head, out[0]))
    best, *_, unlikely = sorted(sequences, key=lambda tokens: -sequences[tokens] / (len(tokens) + 2))
    unlikely = next(tokens for tokens in sequences if len(tokens) == 3 and tokens != best)
    plain = ModifiedBeamSearch(head, 100)
    biased = ModifiedBeamSearch(head, 100, scorers=[_graph({unlikely: 10.0}, 3)])
    lens = torch.tensor([4])
    assert tuple(plain.results(run(plain, out, lens))[0].tokens) == best
    assert unlikely == tuple(biased.results(run(biased, out, lens))[0].tokens)[:3]


def test_tabulated_transitions_equal_arcs():
    arcs = [{1: (1, 0.5), 3: (3, 1.0)}, {2: (2, 2.0)}, {1: (1, -1.0)}, {3: (3, 0.25)}]
    failures = [(0, 0.0), (0, -0.5), (1, -0.25), (0, -0.75)]
    tabulated = FailureAutomaton(arcs, failures, VOCAB_SIZE)
    untabulated = FailureAutomaton(arcs, failures, VOCAB_SIZE, max_table_entries=0)
    states = torch.arange(tabulated.num_states).repeat(2)
    assert torch.equal(tabulated.scores(states), untabulated.scores(states))
    for token in range(VOCAB_SIZE):
        tokens = torch.full_like(states, token)
        assert torch.equal(tabulated.advance(states, tokens), untabulated.advance(states, tokens))
    assert tabulated.scores(torch.tensor([2])).tolist() == [[-0.75, -1.0, 1.75, 0.25]]
    assert untabulated.advance(torch.tensor([2] * 4), torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_invalid_phrases_are_rejected():
    with pytest.raises(ValueError, match="at least one phrase"):
        build_context_graph([], 5)
    for tokens in ((), (0,), (5,)):
        with pytest.raises(ValueError, match="at least one token, from 1 to 4"):
            build_context_graph([Phrase(tokens, 1.0)], 5)


def test_automaton_with_another_vocabulary_is_rejected(make_head):
    with pytest.raises(ValueError, match="over 7 tokens: the model has 4"):
        ModifiedBeamSearch(make_head(4), scorers=[FailureAutomaton([{}], [(0, 0.0)], 7)])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(["ab ba bab", "aa bb"], 8, tmp_path_factory.mktemp("bpe")))


class TestContextFile:
    def test_phrases_have_their_own_or_the_default_score(self, tokenizer, tmp_path):
        (tmp_path / "words.txt").write_text("ab\tba\n\n  bab\t:3.5 \naa\n")
        phrases = read_context_file(tmp_path / "words.txt", tokenizer, 2.0)
        assert [phrase.score for phrase in phrases] == [2.0, 3.5, 2.0]
        assert tokenizer.decode([list(phrase.tokens) for phrase in phrases]) == ["ab ba", "bab", "aa"]

    def test_invalid_files_are_rejected(self, tokenizer, tmp_path):
        path = tmp_path / "words.txt"
        with pytest.raises(ValueError, match=r"words.txt.*--context-file"):
            read_context_file(path, tokenizer, 2.0)
        path.write_text("\n")
        with pytest.raises(ValueError, match="has no hotwords"):
            read_context_file(path, tokenizer, 2.0)
        path.write_text("ab\nZürich\n")
        with pytest.raises(ValueError, match="line 2: 'Zürich'"):
            read_context_file(path, tokenizer, 2.0)
        path.write_text("ab\n\x7f\n")  # normalization removes this character
        with pytest.raises(ValueError, match=r"line 2: .* no token of the model covers"):
            read_context_file(path, tokenizer, 2.0)
        for score in ("nan", "inf", "-inf", "1e+38"):
            path.write_text(f"ab\nba :{score}\n")
            message = f"line 2: the score of 'ba' is {re.escape(score)}: expected at least -10000 and at most 10000"
            with pytest.raises(ValueError, match=message):
                read_context_file(path, tokenizer, 2.0)
