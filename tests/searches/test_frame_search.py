import pytest
import torch
from hypothesis import given, settings
from search_cases import all_paths, all_sequences, cases, make_case_head, plain_beam_search, run

from icefall_pathways.searches import GreedySearch, ModifiedBeamSearch, SearchState


def _tokens(search, encoder_out, lens, sizes=None):
    return [found.tokens for found in search.results(run(search, encoder_out, lens, sizes))]


@pytest.mark.parametrize("sizes", [None, [8] * 5, [1] * 40], ids=["offline", "pieces of 8", "frame by frame"])
class TestReference:
    def test_greedy(self, reference, sizes):
        search = GreedySearch(reference.model)
        found = search.results(run(search, reference.encoder_out, reference.lens, sizes))
        assert [hypothesis.tokens for hypothesis in found] == reference.greedy
        assert [hypothesis.timestamps for hypothesis in found] == reference.greedy_ts

    def test_beam(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4)
        found = search.results(run(search, reference.encoder_out, reference.lens, sizes))
        assert [hypothesis.tokens for hypothesis in found] == reference.beam4
        assert [hypothesis.timestamps for hypothesis in found] == reference.beam4_ts
        log_probs = torch.tensor([hypothesis.log_prob for hypothesis in found], dtype=torch.float64)
        torch.testing.assert_close(log_probs, reference.beam4_log_prob, rtol=0, atol=1e-4)

    def test_all_hypotheses_of_the_beam(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4)
        found = search.n_best(run(search, reference.encoder_out, reference.lens, sizes))
        for hypotheses, expected in zip(found, reference.beam4_all_log_probs, strict=True):
            log_probs = torch.tensor([hypothesis.log_prob for hypothesis in hypotheses], dtype=torch.float64)
            torch.testing.assert_close(log_probs.sort(descending=True).values, expected, rtol=0, atol=1e-4)

    def test_blank_penalty(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4, blank_penalty=1.0)
        assert _tokens(search, reference.encoder_out, reference.lens, sizes) == reference.beam4_penalty

    def test_beam_of_one(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=1)
        assert _tokens(search, reference.encoder_out, reference.lens, sizes) == reference.beam4_no_merge_beam1


def test_reference_tells_the_searches_apart(reference):
    assert sum(a != b for a, b in zip(reference.greedy, reference.beam4, strict=True)) == 7


def _searches(make_head, case):
    head = make_case_head(make_head, case)
    return [
        GreedySearch(head, case["blank_penalty"]),
        ModifiedBeamSearch(head, case["beam_size"], case["blank_penalty"]),
    ]


def _assert_same(found, expected):
    assert [x.tokens for x in found] == [x.tokens for x in expected]
    assert [x.timestamps for x in found] == [x.timestamps for x in expected]
    assert [x.log_prob for x in found] == pytest.approx([x.log_prob for x in expected], abs=1e-4)


_quickly = settings(max_examples=40, deadline=None)


class TestProperties:
    @_quickly
    @given(cases())
    def test_pieces_of_any_size_give_what_the_whole_gives(self, make_head, case):
        for search in _searches(make_head, case):
            whole = search.n_best(run(search, case["encoder_out"], case["lens"]))
            pieces = search.n_best(run(search, case["encoder_out"], case["lens"], case["sizes"]))
            for found, expected in zip(pieces, whole, strict=True):
                _assert_same(found, expected)

    @_quickly
    @given(cases())
    def test_a_batch_gives_what_its_streams_give_alone(self, make_head, case):
        for search in _searches(make_head, case):
            batch = search.results(run(search, case["encoder_out"], case["lens"]))
            alone = [
                search.results(run(search, out[None, :length], length[None]))[0]
                for out, length in zip(case["encoder_out"], case["lens"], strict=True)
            ]
            _assert_same(batch, alone)

    @_quickly
    @given(cases())
    def test_a_beam_of_one_is_greedy(self, make_head, case):
        greedy, _ = _searches(make_head, case)
        beam = ModifiedBeamSearch(greedy.model, beam_size=1, blank_penalty=case["blank_penalty"])
        arguments = (case["encoder_out"], case["lens"])
        _assert_same(beam.results(run(beam, *arguments)), greedy.results(run(greedy, *arguments)))

    @_quickly
    @given(cases())
    def test_hypotheses_differ_and_probabilities_only_fall(self, make_head, case):
        for search in _searches(make_head, case):
            before = [0.0] * len(case["lens"])
            state = search.init(len(case["lens"]))
            for t in range(case["encoder_out"].size(1)):
                reads = (case["lens"] > t).long()
                state = search.advance(state, case["encoder_out"][:, t : t + 1], reads)
                totals = state.log_probs.double().logsumexp(dim=1).tolist()
                assert all(now <= then + 1e-4 for now, then in zip(totals, before, strict=True))
                before = totals
            for hypotheses in search.n_best(state):
                tokens = [tuple(hypothesis.tokens) for hypothesis in hypotheses]
                assert len(set(tokens)) == len(tokens)
                assert all(hypothesis.timestamps == sorted(set(hypothesis.timestamps)) for hypothesis in hypotheses)

    @_quickly
    @given(cases())
    def test_streams_of_different_age_share_a_batch(self, make_head, case):
        for search in _searches(make_head, case):
            out, lens = case["encoder_out"], case["lens"]
            old = run(search, out, lens)
            joined = SearchState.join([*search.init(len(lens)).split(), *old.split()])
            joined = search.advance(joined, torch.cat([out, out]), torch.cat([lens, torch.zeros_like(lens)]))
            _assert_same(search.results(joined), search.results(old) * 2)


@settings(max_examples=15, deadline=None)
@given(cases(max_frames=4, max_vocab_size=3))
def test_a_wide_beam_finds_all_sequences_and_sums_their_paths(make_head, case):
    head, lens = make_case_head(make_head, case), case["lens"]
    search = ModifiedBeamSearch(head, 3**4, case["blank_penalty"])
    found = search.n_best(run(search, case["encoder_out"], lens))
    for hypotheses, out, length in zip(found, case["encoder_out"], lens, strict=True):
        expected = all_sequences(all_paths(head, out[:length], case["blank_penalty"]))
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_beam_search_is_its_recursion(make_head, case):
    head = make_case_head(make_head, case)
    search = ModifiedBeamSearch(head, case["beam_size"], case["blank_penalty"])
    found = search.n_best(run(search, case["encoder_out"], case["lens"]))
    for hypotheses, out, length in zip(found, case["encoder_out"], case["lens"], strict=True):
        expected = plain_beam_search(head, out[:length], case["beam_size"], case["blank_penalty"])
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [GreedySearch, ModifiedBeamSearch])
def test_a_state_is_left_as_it_is(make_head, kind):
    search = kind(make_head(6, seed=1))
    out = torch.randn(2, 8, 8) * 2
    state = search.advance(search.init(2), out[:, :3], torch.tensor([3, 3]))
    before = search.n_best(state)
    ends = [search.n_best(search.advance(state, out[:, 3:], torch.tensor([5, 5]))) for _ in range(2)]
    assert search.n_best(state) == before
    assert ends[0] == ends[1]
    assert ends[0][0][0].tokens


def test_a_beam_needs_a_hypothesis(make_head):
    with pytest.raises(ValueError, match="at least 1"):
        ModifiedBeamSearch(make_head(4), beam_size=0)
