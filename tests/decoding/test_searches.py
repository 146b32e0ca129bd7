import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.decoding.searches import GreedySearch, ModifiedBeamSearch, SearchState


def _run(search, encoder_out, lens, sizes=None):
    """Decode in pieces of the given sizes; a stream that ends inside a piece has a shorter length there."""
    state = search.init(encoder_out.size(0))
    start = 0
    for size in sizes or [encoder_out.size(1)]:
        piece = encoder_out[:, start : start + size]
        state = search.advance(state, piece, (lens - start).clamp(0, piece.size(1)))
        start += size
    return state


def _tokens(search, encoder_out, lens, sizes=None):
    return [found.tokens for found in search.results(_run(search, encoder_out, lens, sizes))]


@pytest.mark.parametrize("sizes", [None, [8] * 5, [1] * 40], ids=["offline", "pieces of 8", "frame by frame"])
class TestReference:
    def test_greedy(self, reference, sizes):
        search = GreedySearch(reference.model)
        found = search.results(_run(search, reference.encoder_out, reference.lens, sizes))
        assert [hypothesis.tokens for hypothesis in found] == reference.greedy
        assert [hypothesis.timestamps for hypothesis in found] == reference.greedy_ts

    def test_beam(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4)
        found = search.results(_run(search, reference.encoder_out, reference.lens, sizes))
        assert [hypothesis.tokens for hypothesis in found] == reference.beam4
        assert [hypothesis.timestamps for hypothesis in found] == reference.beam4_ts
        log_probs = torch.tensor([hypothesis.log_prob for hypothesis in found], dtype=torch.float64)
        torch.testing.assert_close(log_probs, reference.beam4_log_prob, rtol=0, atol=1e-4)

    def test_all_hypotheses_of_the_beam(self, reference, sizes):
        search = ModifiedBeamSearch(reference.model, beam_size=4)
        found = search.n_best(_run(search, reference.encoder_out, reference.lens, sizes))
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


@st.composite
def _cases(draw):
    """A random head, encoder outputs of several streams, and a way to cut them."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    lens = torch.tensor(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)))
    num_frames = int(lens.max())
    sizes = draw(st.lists(st.integers(0, 5), max_size=6))
    sizes.append(max(0, num_frames - sum(sizes)))
    return {
        "vocab_size": draw(st.integers(2, 9)),
        "context_size": draw(st.integers(1, 3)),
        "beam_size": draw(st.integers(1, 5)),
        "blank_penalty": draw(st.sampled_from([0.0, 1.5])),
        "seed": draw(st.integers(0, 10**6)),
        "encoder_out": torch.randn(len(lens), num_frames, 8) * 2,
        "lens": lens,
        "sizes": sizes,
    }


def _searches(make_head, case):
    head = make_head(case["vocab_size"], case["seed"], context_size=case["context_size"])
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
    @given(_cases())
    def test_pieces_of_any_size_give_what_the_whole_gives(self, make_head, case):
        for search in _searches(make_head, case):
            whole = search.n_best(_run(search, case["encoder_out"], case["lens"]))
            pieces = search.n_best(_run(search, case["encoder_out"], case["lens"], case["sizes"]))
            for found, expected in zip(pieces, whole, strict=True):
                _assert_same(found, expected)

    @_quickly
    @given(_cases())
    def test_a_batch_gives_what_its_streams_give_alone(self, make_head, case):
        for search in _searches(make_head, case):
            batch = search.results(_run(search, case["encoder_out"], case["lens"]))
            alone = [
                search.results(_run(search, out[None, :length], length[None]))[0]
                for out, length in zip(case["encoder_out"], case["lens"], strict=True)
            ]
            _assert_same(batch, alone)

    @_quickly
    @given(_cases())
    def test_a_beam_of_one_is_greedy(self, make_head, case):
        greedy, _ = _searches(make_head, case)
        beam = ModifiedBeamSearch(greedy.model, beam_size=1, blank_penalty=case["blank_penalty"])
        arguments = (case["encoder_out"], case["lens"])
        _assert_same(beam.results(_run(beam, *arguments)), greedy.results(_run(greedy, *arguments)))

    @_quickly
    @given(_cases())
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
    @given(_cases())
    def test_streams_of_different_age_share_a_batch(self, make_head, case):
        for search in _searches(make_head, case):
            out, lens = case["encoder_out"], case["lens"]
            old = _run(search, out, lens)
            joined = SearchState.join([*search.init(len(lens)).split(), *old.split()])
            joined = search.advance(joined, torch.cat([out, out]), torch.cat([lens, torch.zeros_like(lens)]))
            _assert_same(search.results(joined), search.results(old) * 2)


def test_a_wide_beam_sums_all_paths(make_head):
    """With room for every hypothesis, merging adds up to the exact probability of each token sequence."""
    head, num_frames = make_head(3, seed=4), 4
    encoder_out = torch.randn(1, num_frames, 8)
    search = ModifiedBeamSearch(head, beam_size=3**num_frames)
    found = search.n_best(_run(search, encoder_out, torch.tensor([num_frames])))[0]
    assert len(found) == sum(2**n for n in range(num_frames + 1))
    assert sum(torch.tensor(x.log_prob).exp().item() for x in found) == pytest.approx(1.0, abs=1e-5)


def test_a_state_is_left_as_it_is(make_head):
    search = ModifiedBeamSearch(make_head(6, seed=1))
    state = search.advance(search.init(2), torch.randn(2, 3, 8), torch.tensor([3, 3]))
    before = search.n_best(state)
    search.advance(state, torch.randn(2, 5, 8), torch.tensor([5, 5]))
    assert search.n_best(state) == before


def test_a_beam_needs_a_hypothesis(make_head):
    with pytest.raises(ValueError, match="at least 1"):
        ModifiedBeamSearch(make_head(4), beam_size=0)
