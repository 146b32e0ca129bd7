"""Fast beam search, compared with an enumeration of all paths."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from optional_packages import needs_k2
from search_cases import all_paths, all_sequences, cases, make_case_head, run

from icefall_pathways.searches import FastBeamSearch, GreedySearch, SearchState


def _unpruned_search(head, blank_penalty=0.0):
    """Return a search with limits so wide that it prunes nothing."""
    return FastBeamSearch(head, 1000.0, 1000, 10000, blank_penalty, num_paths=3000)


@needs_k2
@settings(max_examples=12, deadline=None)
@given(cases(max_frames=4, max_vocab_size=3))
def test_search_without_pruning_is_exact(make_head, case):
    head = make_case_head(make_head, case)
    search = _unpruned_search(head, case["blank_penalty"])
    state = run(search, case["encoder_out"], case["lens"], case["sizes"])
    streams = zip(search.results(state), search.n_best(state), case["encoder_out"], case["lens"], strict=True)
    for best, hypotheses, out, length in streams:
        paths = all_paths(head, out[:length], case["blank_penalty"])
        path = max(paths, key=paths.__getitem__)
        assert best.log_prob == pytest.approx(paths[path], abs=1e-4)
        assert (best.tokens, best.timestamps) == ([x for x in path if x], [t for t, x in enumerate(path) if x])
        expected = all_sequences(paths)
        # Paths are sampled: improbable sequences may be missing, the others have their exact probability.
        totals = {tuple(x.tokens): x.log_prob for x in hypotheses}
        assert totals == pytest.approx({tokens: expected[tokens] for tokens in totals}, abs=1e-4)
        assert sum(map(math.exp, totals.values())) > 0.9
        assert list(totals.values()) == sorted(totals.values(), reverse=True)


@needs_k2
@settings(max_examples=12, deadline=None)
@given(cases())
def test_chunks_and_batches_do_not_change_results(make_head, case):
    search = FastBeamSearch(make_case_head(make_head, case), beam=8.0, max_contexts=4, max_states=8)
    whole = search.results(run(search, case["encoder_out"], case["lens"]))
    chunked = search.results(run(search, case["encoder_out"], case["lens"], case["sizes"]))
    single = [
        search.results(run(search, out[None, :length], length[None]))[0]
        for out, length in zip(case["encoder_out"], case["lens"], strict=True)
    ]
    for hypotheses in (chunked, single):
        assert [x.tokens for x in hypotheses] == [x.tokens for x in whole]
        assert [x.timestamps for x in hypotheses] == [x.timestamps for x in whole]
        assert [x.log_prob for x in hypotheses] == pytest.approx([x.log_prob for x in whole], abs=1e-3)


@needs_k2
def test_streams_join_and_leave_a_batch(make_head):
    search = _unpruned_search(make_head(4, seed=2))
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


@needs_k2
def test_best_path_is_at_least_as_probable_as_the_greedy_path(reference):
    log_probs = []
    for search in (GreedySearch(reference.model), FastBeamSearch(reference.model)):
        log_probs.append([x.log_prob for x in search.results(run(search, reference.encoder_out, reference.lens))])
    gains = [fast - greedy for greedy, fast in zip(*log_probs, strict=True)]
    assert min(gains) > -1e-4
    assert sum(gain > 0.1 for gain in gains) >= 6


@needs_k2
def test_invalid_options_are_rejected(make_head):
    with pytest.raises(ValueError, match="max_states is 0"):
        FastBeamSearch(make_head(4), max_states=0)


def test_error_without_k2_says_what_needs_it(make_head, monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    with pytest.raises(ValueError, match=r"--decoding-method fast_beam_search needs k2, .* use --decoding-method"):
        FastBeamSearch(make_head(4))
