from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from search_cases import all_paths, all_sequences, cases, make_case_head, plain_beam_search, run, token_log_probs

from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch, SearchState
from icefall_pathways.searches.fast_beam import FastBeamSearchOptions
from icefall_pathways.searches.frame_search import FrameSearch
from icefall_pathways.searches.registry import SEARCHES


def _tokens(search, encoder_out, lens, sizes=None):
    return [hypothesis.tokens for hypothesis in search.results(run(search, encoder_out, lens, sizes))]


@pytest.mark.parametrize("sizes", [None, [8] * 5, [1] * 40], ids=["offline", "chunks of 8", "frame by frame"])
class TestReference:
    def test_greedy_search_equals_icefall(self, reference, sizes):
        search = GreedySearch(reference.model)
        hypotheses = search.results(run(search, reference.encoder_out, reference.lens, sizes))
        assert [hypothesis.tokens for hypothesis in hypotheses] == reference.greedy
        assert [hypothesis.timestamps for hypothesis in hypotheses] == reference.greedy_ts

    def test_modified_beam_search_equals_icefall(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4)
        hypotheses = search.results(run(search, reference.encoder_out, reference.lens, sizes))
        assert [hypothesis.tokens for hypothesis in hypotheses] == reference.beam4
        assert [hypothesis.timestamps for hypothesis in hypotheses] == reference.beam4_ts
        log_probs = torch.tensor([hypothesis.log_prob for hypothesis in hypotheses], dtype=torch.float64)
        torch.testing.assert_close(log_probs, reference.beam4_log_prob, rtol=0, atol=1e-4)

    def test_n_best_log_probs_equal_icefall(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4)
        n_best = search.n_best(run(search, reference.encoder_out, reference.lens, sizes))
        for hypotheses, expected in zip(n_best, reference.beam4_all_log_probs, strict=True):
            log_probs = torch.tensor([hypothesis.log_prob for hypothesis in hypotheses], dtype=torch.float64)
            torch.testing.assert_close(log_probs.sort(descending=True).values, expected, rtol=0, atol=1e-4)

    def test_blank_penalty_equals_icefall(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4, blank_penalty=1.0)
        assert _tokens(search, reference.encoder_out, reference.lens, sizes) == reference.beam4_penalty

    def test_beam_of_one_equals_icefall_without_merging(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=1)
        assert _tokens(search, reference.encoder_out, reference.lens, sizes) == reference.beam4_no_merge_beam1


def test_reference_distinguishes_the_searches(reference):
    assert sum(a != b for a, b in zip(reference.greedy, reference.beam4, strict=True)) == 7


def _searches(make_head, case):
    """Build every registered search whose state is a `BeamState`."""
    head = make_case_head(make_head, case)
    searches = []
    for options in SEARCHES.values():
        if options is not FastBeamSearchOptions:  # its state is in k2's objects; test_fast_beam.py has its tests
            names = {field.name for field in fields(options)} & {"beam_size", "blank_penalty"}
            searches.append(options(**{name: case[name] for name in names}).build_search(head, None, "en"))
    assert {GreedySearch, ModifiedBeamSearch} <= {type(search) for search in searches}
    return [search for search in searches if isinstance(search, FrameSearch)]


def _assert_same(hypotheses, expected):
    assert [x.tokens for x in hypotheses] == [x.tokens for x in expected]
    assert [x.timestamps for x in hypotheses] == [x.timestamps for x in expected]
    assert [x.log_prob for x in hypotheses] == pytest.approx([x.log_prob for x in expected], abs=1e-4)


_examples = settings(max_examples=40, deadline=None)


class TestProperties:
    @_examples
    @given(cases())
    def test_log_probs_of_tokens_equal_the_outputs_of_the_joiner(self, make_head, case):
        """At the frame of each token, given the tokens before it; for all hypotheses, and in chunks of any sizes."""
        head = make_case_head(make_head, case)
        for search in _searches(make_head, case):
            n_best = search.n_best(run(search, case["encoder_out"], case["lens"], case["sizes"]))
            for out, hypotheses in zip(case["encoder_out"], n_best, strict=True):
                for hypothesis in hypotheses:
                    tokens, frames = hypothesis.tokens, hypothesis.timestamps
                    expected = [
                        token_log_probs(head, out[frame], tokens[:index], case["blank_penalty"])[token]
                        for index, (token, frame) in enumerate(zip(tokens, frames, strict=True))
                    ]
                    assert hypothesis.token_log_probs == pytest.approx(expected, abs=1e-4)

    @_examples
    @given(cases())
    def test_chunked_decoding_equals_whole_utterances(self, make_head, case):
        for search in _searches(make_head, case):
            whole = search.n_best(run(search, case["encoder_out"], case["lens"]))
            chunked = search.n_best(run(search, case["encoder_out"], case["lens"], case["sizes"]))
            for hypotheses, expected in zip(chunked, whole, strict=True):
                _assert_same(hypotheses, expected)

    @_examples
    @given(cases())
    def test_batch_equals_single_streams(self, make_head, case):
        for search in _searches(make_head, case):
            batch = search.results(run(search, case["encoder_out"], case["lens"]))
            single = [
                search.results(run(search, out[None, :length], length[None]))[0]
                for out, length in zip(case["encoder_out"], case["lens"], strict=True)
            ]
            _assert_same(batch, single)

    @_examples
    @given(cases())
    def test_beam_of_one_equals_greedy(self, make_head, case):
        head = make_case_head(make_head, case)
        greedy = GreedySearch(head, case["blank_penalty"])
        beam = ModifiedBeamSearch(head, beam_size=1, blank_penalty=case["blank_penalty"])
        arguments = (case["encoder_out"], case["lens"])
        _assert_same(beam.results(run(beam, *arguments)), greedy.results(run(greedy, *arguments)))

    @_examples
    @given(cases())
    def test_hypotheses_are_distinct_and_total_probability_decreases(self, make_head, case):
        for search in _searches(make_head, case):
            previous = [0.0] * len(case["lens"])
            state = search.init(len(case["lens"]))
            for t in range(case["encoder_out"].size(1)):
                valid = (case["lens"] > t).long()
                state = search.advance(state, case["encoder_out"][:, t : t + 1], valid)
                totals = state.log_probs.double().logsumexp(dim=1).tolist()
                assert all(now <= then + 1e-4 for now, then in zip(totals, previous, strict=True))
                previous = totals
            for hypotheses in search.n_best(state):
                tokens = [tuple(hypothesis.tokens) for hypothesis in hypotheses]
                assert len(set(tokens)) == len(tokens)
                assert all(hypothesis.timestamps == sorted(set(hypothesis.timestamps)) for hypothesis in hypotheses)

    @_examples
    @given(cases())
    def test_new_and_advanced_streams_share_a_batch(self, make_head, case):
        for search in _searches(make_head, case):
            out, lens = case["encoder_out"], case["lens"]
            advanced = run(search, out, lens)
            joined = SearchState.join([*search.init(len(lens)).split(), *advanced.split()])
            joined = search.advance(joined, torch.cat([out, out]), torch.cat([lens, torch.zeros_like(lens)]))
            _assert_same(search.results(joined), search.results(advanced) * 2)


@settings(max_examples=15, deadline=None)
@given(cases(max_frames=4, max_vocab_size=3))
def test_beam_search_without_pruning_is_exact(make_head, case):
    head, lens = make_case_head(make_head, case), case["lens"]
    search = ModifiedBeamSearch(head, 3**4, case["blank_penalty"])
    n_best = search.n_best(run(search, case["encoder_out"], lens))
    for hypotheses, out, length in zip(n_best, case["encoder_out"], lens, strict=True):
        expected = all_sequences(all_paths(head, out[:length], case["blank_penalty"]))
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_beam_search_equals_the_reference_implementation(make_head, case):
    head = make_case_head(make_head, case)
    search = ModifiedBeamSearch(head, case["beam_size"], case["blank_penalty"])
    n_best = search.n_best(run(search, case["encoder_out"], case["lens"]))
    for hypotheses, out, length in zip(n_best, case["encoder_out"], case["lens"], strict=True):
        expected = plain_beam_search(head, out[:length], case["beam_size"], case["blank_penalty"])
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [GreedySearch, ModifiedBeamSearch])
def test_advance_does_not_modify_the_state(make_head, kind):
    search = kind(make_head(6, seed=1))
    out = torch.randn(2, 8, 8) * 2
    state = search.advance(search.init(2), out[:, :3], torch.tensor([3, 3]))
    before = search.n_best(state)
    ends = [search.n_best(search.advance(state, out[:, 3:], torch.tensor([5, 5]))) for _ in range(2)]
    assert search.n_best(state) == before
    assert ends[0] == ends[1]
    assert ends[0][0][0].tokens


def test_empty_beam_is_rejected(make_head):
    with pytest.raises(ValueError, match="at least 1"):
        ModifiedBeamSearch(make_head(4), beam_size=0)
