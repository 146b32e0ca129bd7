from dataclasses import replace

import pytest
import tiny_run
import torch
from ranks import fork_ranks
from test_bad_batches import make_trainer

from icefall_pathways.decoding.scoring import Utterance, score
from icefall_pathways.searches import GreedySearch, Hypothesis
from icefall_pathways.training.validation import Validator


def answer(words_of, monkeypatch, tokenizer):
    """Make greedy search find what `words_of` says of the utterance with the given number of encoder frames."""
    lens_of = {}

    def advance(self, state, encoder_out, lens):
        lens_of[0] = lens.tolist()
        return state

    def results(self, state):
        tokens = tokenizer.encode([words_of(frames) for frames in lens_of[0]])
        return [Hypothesis(tokens=found, timestamps=[0] * len(found), log_prob=0.0) for found in tokens]

    monkeypatch.setattr(GreedySearch, "advance", advance)
    monkeypatch.setattr(GreedySearch, "results", results)


@pytest.mark.parametrize(
    ("found", "wer"), [("one two three", 0.0), ("one three", 100 / 3), ("one one two two", 200 / 3)]
)
def test_the_error_rate_is_that_of_the_words(corpus, tmp_path, monkeypatch, found, wer):
    trainer = make_trainer(tiny_run.config(corpus, tmp_path, "en"))
    answer(lambda _: found, monkeypatch, trainer.tokenizer)
    assert trainer.validator(1)["en"]["wer"] == pytest.approx(wer)
    expected = score([Utterance("a", ["one", "two", "three"], found.split())]).wer
    assert wer == pytest.approx(expected if expected > 1 else 100 * expected)


@pytest.mark.parametrize(("wer_cuts", "decoded"), [(0, 0), (1, 1), (2, 2), (3, 3), (50, 3)])
def test_the_sample_is_spread_over_the_dev_set(corpus, tmp_path, monkeypatch, wer_cuts, decoded):
    config = tiny_run.config(corpus, tmp_path, "en", valid_wer_cuts=wer_cuts)
    trainer = make_trainer(replace(config, data=replace(config.data, max_duration=2.0)))
    seen = []
    monkeypatch.setattr(
        Validator,
        "_word_errors",
        lambda self, batch, start, every: seen.extend(batch.texts[start::every]) or torch.tensor([0.0, 1.0]),
    )
    trainer.validator(1)
    assert len(seen) == decoded


def test_ranks_share_the_work_and_know_the_same(corpus, tmp_path):
    found = {}
    for world_size in (1, 2):
        fork_ranks(_validate, world_size, tmp_path / str(world_size), corpus, tmp_path)
        for rank in range(world_size):
            found[world_size, rank] = torch.load(tmp_path / f"{rank}-of-{world_size}.pt", weights_only=False)
    for language, figures in found[1, 0].items():
        assert "wer" in figures
        for rank in range(2):
            assert found[2, rank][language] == pytest.approx(figures)


def _validate(rank, corpus, folder):
    config = tiny_run.config(corpus, folder / "exp")
    trainer = make_trainer(replace(config, data=replace(config.data, max_duration=2.0)), rank)
    torch.save(trainer.validator(1), folder / f"{rank.index}-of-{rank.world_size}.pt")
