"""N-gram models, compared with a direct implementation of the ARPA definition."""

import gzip
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import cases, make_case_head, plain_beam_search, run

from icefall_pathways.searches import ModifiedBeamSearch
from icefall_pathways.searches.ngram import read_arpa, read_ngram

SYMBOLS = ["<blk>", "<sos/eos>", "<unk>", "a", "b", "▁c", "d"]
LN10 = math.log(10)


def _write_arpa(path, ngrams):
    """Write {order: {words: (log10, back-off)}}."""
    lines = ["written for a test", "\\data\\", *(f"ngram {n}={len(entries)}" for n, entries in ngrams.items()), ""]
    for n, entries in ngrams.items():
        lines.append(f"\\{n}-grams:")
        for words, (log10, backoff) in entries.items():
            lines.append(f"{log10:.4f}\t{' '.join(words)}" + (f"\t{backoff:.4f}" if n < len(ngrams) else ""))
        lines.append("")
    path.write_text("\n".join([*lines, "\\end\\", ""]), encoding="utf-8")


def _log10(ngrams, history, word):
    """Return log10 p(word | history): listed, or the back-off weight times the probability with a shorter history."""
    listed = ngrams.get(len(history) + 1, {}).get((*history, word))
    if listed:
        return listed[0]
    if not history:
        return ngrams[1].get(("<unk>",), (-99.0, 0.0))[0]
    backoff = ngrams.get(len(history), {}).get(tuple(history), (0.0, 0.0))[1]
    return backoff + _log10(ngrams, history[1:], word)


def _without_zeros(ngrams):
    """Return the model in which tokens of probability 0 are as probable as the least probable listed one."""
    lowest = min((log10 for (word,), (log10, _) in ngrams[1].items() if word in SYMBOLS[3:] and log10 > -99), default=0)
    replaced = {
        n: {
            words: (log10 if log10 > -99 else lowest, backoff if backoff > -99 else 0.0)
            for words, (log10, backoff) in entries.items()
        }
        for n, entries in ngrams.items()
    }
    replaced[1].setdefault(("<unk>",), (lowest, 0.0))
    return replaced


_words = st.sampled_from(["a", "b", "▁c", "d"])
_log10s = st.floats(-3, -0.1).map(lambda x: round(x, 4)) | st.just(-99.0)


@st.composite
def _models(draw):
    """Draw unigrams of some tokens and n-grams up to some order; suffixes of listed n-grams may be missing."""
    order = draw(st.integers(1, 4))
    ngrams = {1: {(word,): (draw(_log10s), draw(_log10s)) for word in ["<s>", "</s>", *draw(st.sets(_words))]}}
    if draw(st.booleans()):
        ngrams[1][("<unk>",)] = (draw(_log10s), 0.0)
    for n in range(2, order + 1):
        contexts = [words for words in ngrams[n - 1] if words[-1] not in ("</s>", "<unk>")]
        lasts = [word for (word,) in ngrams[1] if word != "<s>"]
        entries = (
            st.lists(st.tuples(st.sampled_from(contexts), st.sampled_from(lasts)), max_size=6)
            if contexts
            else st.just([])
        )
        ngrams[n] = {(*context, last): (draw(_log10s), draw(_log10s)) for context, last in draw(entries)}
    return ngrams


def _bonus(ngrams, scale):
    """Return a function from token IDs to their shallow fusion score."""
    order = len(ngrams)
    ngrams = ngrams if scale > 0 else _without_zeros(ngrams)

    def bonus(tokens):
        words = ["<s>", *(SYMBOLS[token] for token in tokens)]
        history = [tuple(words[max(0, i - order + 1) : i]) for i in range(1, len(words))]
        return sum(scale * LN10 * _log10(ngrams, h, word) for h, word in zip(history, words[1:], strict=True))

    return bonus


@settings(max_examples=100, deadline=None)
@given(_models(), st.lists(st.integers(1, 6), max_size=8), st.sampled_from([1.0, 0.3, -0.2]))
def test_scores_equal_the_arpa_definition(tmp_path_factory, ngrams, tokens, scale):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    _write_arpa(path, ngrams)
    model = read_ngram(path, SYMBOLS, scale)
    state, total = torch.tensor([model.start]), 0.0
    for token in tokens:
        total += model.scores(state)[0, token].item()
        state = model.advance(state, torch.tensor([token]))
    assert total == pytest.approx(_bonus(ngrams, scale)(tokens), abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(_models(), cases(), st.sampled_from([0.3, -0.2]))
def test_beam_search_adds_scaled_scores(tmp_path_factory, make_head, ngrams, case, scale):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    _write_arpa(path, ngrams)
    case["vocab_size"] = len(SYMBOLS)
    head = make_case_head(make_head, case)
    search = ModifiedBeamSearch(head, case["beam_size"], scorers=[read_ngram(path, SYMBOLS, scale)])
    n_best = search.n_best(run(search, case["encoder_out"], case["lens"], case["sizes"]))
    bonus = _bonus(ngrams, scale)
    for hypotheses, out, length in zip(n_best, case["encoder_out"], case["lens"], strict=True):
        expected = plain_beam_search(head, out[:length], case["beam_size"], bonus=bonus)
        assert {tuple(x.tokens): x.log_prob for x in hypotheses} == pytest.approx(expected, abs=1e-3)
        assert [x.bonus for x in hypotheses] == pytest.approx([bonus(x.tokens) for x in hypotheses], abs=1e-3)


GOOD = {1: {("<s>",): (-99.0, -0.5), ("a",): (-0.5, -0.2), ("b",): (-1.0, 0.0)}, 2: {("a", "b"): (-0.3, 0.0)}}


@pytest.mark.parametrize("unk", [{}, {("<unk>",): (-100.0, 0.0)}])
def test_negative_scale_does_not_reward_tokens_that_the_model_lacks(tmp_path, unk):
    """Low-order density ratio: the bonus of a missing token was 68 at a scale of -0.3."""
    _write_arpa(tmp_path / "lm.arpa", {1: GOOD[1] | unk, 2: GOOD[2]})
    model = read_ngram(tmp_path / "lm.arpa", SYMBOLS, -0.3)
    scores = model.scores(torch.tensor([0]))[0]
    assert scores[SYMBOLS.index("d")] == pytest.approx(0.3 * LN10)  # as "b", the least probable
    assert scores.max() == scores[SYMBOLS.index("b")]


@pytest.mark.parametrize("value", ["nan", "inf", "1e308"])
def test_numbers_that_are_not_finite_are_rejected(tmp_path, value):
    _write_arpa(tmp_path / "lm.arpa", GOOD)
    text = (tmp_path / "lm.arpa").read_text()
    for original in ("-0.3000", "-0.2000"):
        (tmp_path / "lm.arpa").write_text(text.replace(original, value))
        with pytest.raises(ValueError, match=r"lm.arpa.*line \d+ is .*expected finite numbers"):
            read_ngram(tmp_path / "lm.arpa", SYMBOLS)


def test_compressed_file_equals_the_uncompressed_one(tmp_path):
    _write_arpa(tmp_path / "lm.arpa", GOOD)
    (tmp_path / "lm.arpa.gz").write_bytes(gzip.compress((tmp_path / "lm.arpa").read_bytes()))
    assert read_arpa(tmp_path / "lm.arpa.gz") == read_arpa(tmp_path / "lm.arpa")


def test_word_level_model_is_rejected(tmp_path):
    _write_arpa(tmp_path / "lm.arpa", {1: GOOD[1] | {("house",): (-1.0, 0.0), ("mouse",): (-1.0, 0.0)}})
    with pytest.raises(ValueError, match="'house' and 1 other entries are not tokens"):
        read_ngram(tmp_path / "lm.arpa", SYMBOLS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("a b", "x b"), "context of 'x b' is not listed"),
        (lambda text: text.replace("\\end\\", ""), r"ends without .end"),
        (lambda text: text.replace("ngram 2=1", "ngram 2=7"), r"header lists \[3, 7\]"),
        (lambda text: text.replace("ngram 2=1", "ngram 3=1"), "line 4"),
        (lambda text: text.replace("-0.3000", "much"), "much"),
        (lambda text: text.replace("a b", "a b a b"), "expected log10, 2 words"),
        (lambda text: text[:20], "not an ARPA file"),
    ],
)
def test_damaged_files_are_rejected(tmp_path, damage, message):
    path = tmp_path / "lm.arpa"
    with pytest.raises(ValueError, match=r"lm.arpa.*--ngram-lm"):
        read_ngram(path, SYMBOLS)
    _write_arpa(path, GOOD)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_ngram(path, SYMBOLS)
