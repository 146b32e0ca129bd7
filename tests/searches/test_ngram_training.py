import math
from itertools import product

import pytest
import torch

from icefall_pathways.searches.ngram import read_arpa, read_ngram
from icefall_pathways.searches.ngram_training import train_ngram, write_arpa

SENTENCES = ["ab", "aab", "b", "abab"]
VOCABULARY = "abc"


def probability(ngrams, history, word):
    """Return P(word | history) of a back-off model."""
    listed = ngrams[len(history)].get((*history, word)) if len(history) < len(ngrams) else None
    if listed:
        return 10 ** listed[0]
    backoff = ngrams[len(history) - 1].get(tuple(history), (0.0, 0.0))[1] if history else 0.0
    return 10**backoff * probability(ngrams, history[1:], word) if history else 0.0


def test_bigram_probabilities_equal_those_computed_by_hand():
    # After a: b 4 times, a once, which are 2 types. Unigrams: a 5, b 5, </s> 4 times, 3 types, and 4 words in all.
    unigram = (5 + 3 / 4) / (14 + 3)
    ngrams = train_ngram(SENTENCES, 2, VOCABULARY)
    assert probability(ngrams, (), "b") == pytest.approx(unigram)
    assert probability(ngrams, (), "c") == pytest.approx(3 / 4 / 17)
    assert probability(ngrams, ("a",), "b") == pytest.approx((4 + 2 * unigram) / (5 + 2))
    assert probability(ngrams, ("a",), "c") == pytest.approx(2 * (3 / 4 / 17) / (5 + 2))
    assert probability(ngrams, ("c",), "b") == pytest.approx(unigram)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_after_every_history_sum_to_one(order):
    ngrams = train_ngram(SENTENCES, order, VOCABULARY)
    histories = [history for length in range(order) for history in product(VOCABULARY, repeat=length)]
    histories += [("<s>", *history) for history in histories if len(history) < order - 1]
    for history in histories:
        assert sum(probability(ngrams, history, word) for word in [*VOCABULARY, "</s>"]) == pytest.approx(1), history


def test_decoding_reads_the_scores_that_were_trained(tmp_path):
    ngrams = train_ngram(SENTENCES, 3, VOCABULARY)
    write_arpa(tmp_path / "lm.arpa", ngrams)
    for entries, read in zip(ngrams, read_arpa(tmp_path / "lm.arpa"), strict=True):
        assert entries.keys() == read.keys()
    model = read_ngram(tmp_path / "lm.arpa", ["<blk>", *VOCABULARY], scale=0.5)
    state = torch.tensor([model.start])
    for token in (1, 2):
        state = model.advance(state, torch.tensor([token]))
    expected = 0.5 * math.log(probability(ngrams, ("a", "b"), "a"))
    assert model.scores(state)[0, 1].item() == pytest.approx(expected, abs=1e-4)


def test_training_without_transcripts_is_an_error():
    with pytest.raises(ValueError, match=r"no transcripts to train an n-gram model on: run the earlier stages"):
        train_ngram([], 2, VOCABULARY)
