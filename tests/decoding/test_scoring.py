"""Word and character error rates, and result files."""

import json

import kaldialign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icefall_pathways.decoding.scoring import (
    Utterance,
    format_table,
    read_results,
    score,
    summarize,
    write_results,
    write_summary,
)


def _utterance(cut_id, ref, hyp):
    return Utterance(cut_id, ref.split(), hyp.split())


UTTERANCES = [
    _utterance("cut-b", "one two three", "one too three four"),
    _utterance("cut-a", "good day", "day"),
]


def test_error_counts_of_known_utterances():
    figures = score(UTTERANCES).as_dict()
    low, high = figures.pop("wer_interval")
    # The utterances have 2 errors in 3 words and 1 in 2; bootstrap test sets contain one of them twice or both once.
    assert [low, high] == pytest.approx([50.0, 200 / 3])
    # Characters: "w" substituted by "o", " four" inserted, "good " deleted.
    characters = {"sub": 1, "del": 5, "ins": 5, "total": 13 + 8}
    expected = {"wer": 60.0, "errors": 3, "words": 5, "sub": 1, "del": 1, "ins": 1, "utterances": 2, "cer": 1100 / 21}
    assert figures.pop("characters") == characters
    assert figures == pytest.approx(expected)


_sentence = st.lists(st.sampled_from("abcd"), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_sentence, _sentence), min_size=1, max_size=5))
def test_counts_equal_edit_distances(sentences):
    result = score(Utterance(str(n), ref, hyp) for n, (ref, hyp) in enumerate(sentences))
    distances = [kaldialign.edit_distance(ref, hyp) for ref, hyp in sentences]
    assert result.errors == sum(distance["total"] for distance in distances)
    assert result.errors == result.insertions + result.deletions + result.substitutions
    assert result.words == sum(len(ref) for ref, _ in sentences)


def test_asterisk_is_a_word():
    sentences = {"a": ("one * two", "one two"), "b": ("one", "one *"), "c": ("* a", "b a")}
    result = score(_utterance(cut_id, *pair) for cut_id, pair in sentences.items())
    assert (result.words, result.errors, result.deletions, result.insertions, result.substitutions) == (6, 3, 1, 1, 1)
    assert result.word_counts().tolist() == [[1, 3], [1, 1], [1, 2]]


def test_empty_references_and_hypotheses_are_counted():
    result = score([_utterance("a", "", "one two"), _utterance("b", "three", ""), _utterance("c", "", "")])
    assert (result.insertions, result.deletions, result.words, result.utterances) == (2, 1, 1, 3)
    assert score([_utterance("a", "", "")]).wer == 0.0


def test_empty_test_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mls-french-dev: no utterances"):
        write_results(tmp_path, "mls-french-dev", "greedy", [])
    with pytest.raises(ValueError, match="test set is empty"):
        score([])
    with pytest.raises(ValueError, match="no languages"):
        summarize("test", "greedy_search", {})
    assert not list(tmp_path.iterdir())


def test_duplicate_cut_is_refused():
    with pytest.raises(ValueError, match="cut-b was decoded twice"):
        score([UTTERANCES[0], UTTERANCES[0]])


def test_result_files_of_a_language(tmp_path):
    write_results(tmp_path, "mls-english-test", "epoch-1", UTTERANCES)
    recogs = (tmp_path / "recogs-mls-english-test-epoch-1.txt").read_text().splitlines()
    assert recogs == [
        "cut-a:\tref=['good', 'day']",
        "cut-a:\thyp=['day']",
        "cut-b:\tref=['one', 'two', 'three']",
        "cut-b:\thyp=['one', 'too', 'three', 'four']",
    ]
    errors = (tmp_path / "errs-mls-english-test-epoch-1.txt").read_text().splitlines()
    assert errors[:2] == [
        "%WER = 60.00",
        "Errors: 1 insertions, 1 deletions, 1 substitutions, over 5 reference words (3 correct)",
    ]
    for line in (
        "cut-a:\t(good->*) day",
        "cut-b:\tone (two->too) three (*->four)",
        "1   two -> too",
        "1   good",
        "1   four",
        "day   1 0 1 1",
        "too   0 1 0 1",
    ):
        assert line in errors
    assert (tmp_path / "wer-summary-mls-english-test-epoch-1.txt").read_text() == "settings\tWER\nepoch-1\t60.00\n"


def test_results_round_trip(tmp_path):
    utterances = [*UTTERANCES, _utterance("cut-c", "l'été d'\"ici\"", ""), _utterance("cut-d", "", "ja\\nein")]
    write_results(tmp_path, "mls-french-test", "epoch-1", utterances)
    loaded = read_results(tmp_path, "mls-french-test", "epoch-1")
    assert loaded == sorted(utterances, key=lambda utterance: utterance.cut_id)
    with pytest.raises(ValueError, match="decode mls-dutch-test first"):
        read_results(tmp_path, "mls-dutch-test", "epoch-1")
    path = tmp_path / "recogs-mls-french-test-epoch-1.txt"
    text = path.read_text()
    path.write_text(text.replace("['day']", "['day'"))
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_results(tmp_path, "mls-french-test", "epoch-1")
    path.write_text(text[: text.rindex("cut-d")])
    with pytest.raises(ValueError, match="cut-d lacks"):
        read_results(tmp_path, "mls-french-test", "epoch-1")
    path.write_text(text + text.splitlines()[1].replace("day", "night"))
    with pytest.raises(ValueError, match="line 9 is damaged"):
        read_results(tmp_path, "mls-french-test", "epoch-1")


def test_adjacent_errors_share_a_bracket(tmp_path):
    write_results(tmp_path, "t", "s", [_utterance("x", "a b c d", "a x y d"), _utterance("y", "a b", "c")])
    errors = (tmp_path / "errs-t-s.txt").read_text()
    assert "x:\ta (b c->x y) d\n" in errors
    assert "y:\t(a b->c)\n" in errors


def test_summary_table(tmp_path):
    scores = {"en": score(UTTERANCES), "nl": score([_utterance("a", "een twee drie vier", "een twee drie vijf")])}
    summary = summarize("test", "greedy_search", scores, {"real_time_factor": 0.1})
    table = write_summary(tmp_path, "mls", "epoch-1", summary)
    assert table == format_table(summary)
    lines = table.splitlines()
    assert lines[2].split() == ["english", "60.00", "50.00", "to", "66.67", "52.38", "3", "5", "1", "1", "1", "2"]
    assert lines[3].split() == ["dutch", "25.00", "25.00", "to", "25.00", "11.11", "1", "4", "1", "0", "0", "1"]
    assert lines[4].split() == ["average", "42.50", "37.50", "to", "45.83", "31.75"]
    assert len({line.index(".") for line in lines[2:]}) == 1
    assert (tmp_path / "wer-summary-all-mls-test-epoch-1.txt").read_text() == table + "\n"
    stored = json.loads((tmp_path / "wer-summary-all-mls-test-epoch-1.json").read_text())
    assert (stored["split"], stored["method"]) == ("test", "greedy_search")
    assert stored["average_wer"] == pytest.approx(42.5)
    assert stored["languages"]["nl"] == scores["nl"].as_dict()
    assert stored["real_time_factor"] == 0.1


CHINESE = [Utterance("a", ["今天", "天气", "很好"], ["今天天", "很好"]), Utterance("b", ["你好"], ["您好"])]


def test_languages_without_spaces_are_scored_by_characters(tmp_path):
    result = score(CHINESE, by_characters=True)
    assert (result.words, result.errors, result.substitutions, result.deletions) == (8, 2, 1, 1)
    assert result.wer == result.cer == pytest.approx(25.0)
    figures = result.as_dict()
    assert figures["unit"] == "character" and "unit" not in score(CHINESE).as_dict()
    write_results(tmp_path, "cv-chinese-test", "x", CHINESE, by_characters=True)
    assert read_results(tmp_path, "cv-chinese-test", "x") == CHINESE
    assert (tmp_path / "errs-cv-chinese-test-x.txt").read_text().startswith("%CER = 25.00\n")
    assert (tmp_path / "wer-summary-cv-chinese-test-x.txt").read_text() == "settings\tCER\nx\t25.00\n"
    table = format_table(summarize("test", "greedy", {"zh": result, "en": score(UTTERANCES)}))
    assert "chinese (by characters)" in table and "english  " in table
    assert table.splitlines()[-1] == "(by characters): words are characters, WER is CER"
    assert "by characters" not in format_table(summarize("test", "greedy", {"en": score(UTTERANCES)}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("你好天 "), max_size=4), st.lists(st.text("你好天"), max_size=4))
def test_spaces_do_not_count_when_characters_are_scored(ref, hyp):
    joined = [Utterance("a", ["".join(ref).replace(" ", "")], ["".join(hyp)])]
    split = [Utterance("a", "".join(ref).split(), list("".join(hyp)))]
    assert score(joined, True).errors == score(split, True).errors
    assert score(split, True).as_dict()["characters"] == score(joined, True).as_dict()["characters"]
