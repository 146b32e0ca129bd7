"""Fast beam search, against all paths counted one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from search_cases import all_paths, all_sequences, cases, make_case_head, run

from icefall_pathways.searches import FastBeamSearch, GreedySearch, SearchState


def _wide(head, blank_penalty=0.0):
    """A search that drops nothing."""
    return FastBeamSearch(head, 1000.0, 1000, 10000, blank_penalty, num_paths=3000)


@settings(max_examples=12, deadline=None)
@given(cases(max_frames=4, max_vocab_size=3))
def test_a_wide_beam_finds_the_best_path_and_sums_the_paths_of_sequences(make_head, case):
    head = make_case_head(make_head, case)
    search = _wide(head, case["blank_penalty"])
    state = run(search, case["encoder_out"], case["lens"], case["sizes"])
    streams = zip(search.results(state), search.n_best(state), case["encoder_out"], case["lens"], strict=True)
    for best, hypotheses, out, length in streams:
        paths = all_paths(head, out[:length], case["blank_penalty"])
        path = max(paths, key=paths.__getitem__)
        assert best.log_prob == pytest.approx(paths[path], abs=1e-4)
        assert (best.tokens, best.timestamps) == ([x for x in path if x], [t for t, x in enumerate(path) if x])
        expected = all_sequences(paths)
        # Paths are drawn: an improbable sequence may not be among them, the others have their exact probability.
        found = {tuple(x.tokens): x.log_prob for x in hypotheses}
        assert found == pytest.approx({tokens: expected[tokens] for tokens in found}, abs=1e-4)
        assert sum(map(math.exp, found.values())) > 0.9
        assert list(found.values()) == sorted(found.values(), reverse=True)


@settings(max_examples=12, deadline=None)
@given(cases())
def test_pieces_and_batches_change_nothing(make_head, case):
    search = FastBeamSearch(make_case_head(make_head, case), beam=8.0, max_contexts=4, max_states=8)
    whole = search.results(run(search, case["encoder_out"], case["lens"]))
    pieces = search.results(run(search, case["encoder_out"], case["lens"], case["sizes"]))
    alone = [
        search.results(run(search, out[None, :length], length[None]))[0]
        for out, length in zip(case["encoder_out"], case["lens"], strict=True)
    ]
    for others in (pieces, alone):
        assert [x.tokens for x in others] == [x.tokens for x in whole]
        assert [x.timestamps for x in others] == [x.timestamps for x in whole]
        assert [x.log_prob for x in others] == pytest.approx([x.log_prob for x in whole], abs=1e-3)


def test_streams_join_and_leave(make_head):
    search = _wide(make_head(4, seed=2))
    out, lens = torch.randn(2, 6, 8) * 2, torch.tensor([6, 6])
    whole = search.results(run(search, out, lens))
    first, second = search.init(2).split()
    first = search.advance(first, out[:1, :4], torch.tensor([4]))
    assert search.results(second)[0].tokens == []
    assert len(search.n_best(second)[0]) == 1
    both = search.advance(SearchState.join([first, second]), out[:, :2].flip(0)[[1, 0]], torch.tensor([0, 2]))
    first, second = both.split()
    first = search.advance(first, out[:1, 4:], torch.tensor([2]))
    second = search.advance(second, out[1:, 2:], torch.tensor([4]))
    joined = search.results(SearchState.join([first, second]))
    assert [(x.tokens, x.timestamps) for x in joined] == [(x.tokens, x.timestamps) for x in whole]
    assert joined[0].tokens


def test_reference(reference):
    """The path found is at least as probable as the greedy one."""
    gains = []
    for search in (GreedySearch(reference.model), FastBeamSearch(reference.model)):
        gains.append([x.log_prob for x in search.results(run(search, reference.encoder_out, reference.lens))])
    gains = [fast - greedy for greedy, fast in zip(*gains, strict=True)]
    assert min(gains) > -1e-4
    assert sum(gain > 0.1 for gain in gains) >= 6


def test_impossible_options(make_head):
    with pytest.raises(ValueError, match="max_states 0"):
        FastBeamSearch(make_head(4), max_states=0)
