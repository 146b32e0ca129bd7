"""Division into train, dev and test: whole speakers or sentences, no sentence twice, nothing empty."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icefall_pathways.corpora.splitting import Speech, assign, connected_groups, divide, drop_shared, split_of
from icefall_pathways.corpora.validation import CorpusError

SHARES = {"test": 0.1, "dev": 0.1}
SENTENCES = st.lists(st.sampled_from("abcdefgh"), min_size=1)


@given(SENTENCES, SENTENCES.map(set))
def test_equal_keys_get_one_split_and_no_split_is_empty(keys, more):
    keys += [*sorted(more), "x", "y", "z"]
    splits = assign(keys, SHARES)
    assert set(splits) == {"train", "dev", "test"}
    assert all(len({split for key, split in zip(keys, splits, strict=True) if key == other}) == 1 for other in keys)


def test_held_out_splits_have_a_tenth_of_the_utterances_and_do_not_depend_on_the_order():
    keys = [str(i) for i in range(1000)]
    splits = assign(keys, SHARES)
    assert splits.count("test") == splits.count("dev") == 100
    backwards = assign(keys[::-1], SHARES)
    assert backwards[::-1] == splits


def test_a_large_group_stays_in_train():
    keys = ["large"] * 8 + ["a", "b"]
    assert assign(keys, SHARES)[:8] == ["train"] * 8


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["", "s", "t", "u", "v"])), min_size=1))
def test_no_sentence_is_in_two_splits(pairs):
    utterances = [Speech(sentence, speaker) for sentence, speaker in pairs]
    if len({utterance.sentence for utterance in utterances}) < 3:
        with pytest.raises(CorpusError, match="expected at least 3 sentences"):
            divide(utterances)
        return
    splits, method = divide(utterances)
    assert {"train", "dev", "test"} <= set(splits)
    for sentence in "abcdefghij":
        used = {split for split, utterance in zip(splits, utterances, strict=True) if utterance.sentence == sentence}
        assert len(used - {None}) <= 1
    if method == "speaker":
        for speaker in "stuv":
            used = {split for split, utterance in zip(splits, utterances, strict=True) if utterance.speaker == speaker}
            assert len(used - {None}) <= 1


@pytest.mark.parametrize(
    ("utterances", "method"),
    [
        ([Speech(f"sentence {i}", f"speaker {i % 12}") for i in range(120)], "speaker"),
        ([Speech(f"sentence {i}", f"speaker {i % 12}" if i else "") for i in range(120)], "sentence"),
        ([Speech(f"sentence {i}", f"speaker {i % 2}") for i in range(120)], "sentence"),
        ([Speech(f"sentence {i % 10}", f"speaker {i % 12}") for i in range(120)], "sentence"),
    ],
    ids=["known", "one unknown", "two speakers", "shared sentences"],
)
def test_speakers_are_divided_if_they_are_known_and_enough_remains_for_training(utterances, method):
    assert divide(utterances).method == method


def test_splits_of_the_corpus_are_kept_and_missing_ones_are_taken_from_train():
    utterances = [Speech(f"sentence {i}", "", "train" if i < 20 else "test") for i in range(25)]
    splits, method = divide(utterances)
    assert splits[20:] == ["test"] * 5 and splits.count("dev") == 2
    assert method == "sentence"
    complete = [Speech("a", split="train"), Speech("b", split="dev"), Speech("a", split="test")]
    assert divide(complete) == ([None, "dev", "test"], "")


def test_shared_sentences_are_dropped_from_the_larger_split():
    assert drop_shared(["train", "dev", "test", "dev", "train"], "aaabc") == [None, None, "test", "dev", "train"]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3)))
def test_items_that_share_a_key_are_in_one_group(keys):
    groups = connected_groups(keys)
    expected = list(range(len(keys)))  # by repeated merging of pairs
    for _ in keys:
        for i, first in enumerate(keys):
            for j, second in enumerate(keys):
                if set(first) & set(second):
                    expected = [expected[i] if value == expected[j] else value for value in expected]
    pairs = [(i, j) for i in range(len(keys)) for j in range(len(keys))]
    assert all((groups[i] == groups[j]) == (expected[i] == expected[j]) for i, j in pairs)


def test_names_of_splits():
    assert [split_of(name) for name in ("Train", "validation", "eval", "other")] == ["train", "dev", "test", None]
