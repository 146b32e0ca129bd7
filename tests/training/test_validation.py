"""Validation metrics: word error rates, and their computation on several ranks."""

from dataclasses import replace

import pytest
import tiny_run
import torch
from ranks import fork_ranks

from icefall_pathways.data.dataset import SpeechDataset
from icefall_pathways.decoding.scoring import Utterance, score
from icefall_pathways.searches import GreedySearch, Hypothesis


def set_hypotheses(words_of, monkeypatch, tokenizer):
    """Make greedy search return `words_of(frames)` for an utterance with that number of encoder frames."""
    num_frames = []

    def advance(self, state, encoder_out, lens):
        num_frames[:] = lens.tolist()
        return state

    def results(self, state):
        tokens = tokenizer.encode([words_of(frames) for frames in num_frames])
        return [Hypothesis(tokens=ids, timestamps=[0] * len(ids), log_prob=0.0) for ids in tokens]

    monkeypatch.setattr(GreedySearch, "advance", advance)
    monkeypatch.setattr(GreedySearch, "results", results)


@pytest.mark.parametrize(
    ("hypothesis", "wer"), [("one two three", 0.0), ("one three", 100 / 3), ("one one two two", 200 / 3)]
)
def test_the_word_error_rate_counts_word_errors(corpus, tmp_path, monkeypatch, hypothesis, wer):
    trainer = tiny_run.make_trainer(tiny_run.config(corpus, tmp_path, "en"))
    set_hypotheses(lambda _: hypothesis, monkeypatch, trainer.tokenizer)
    assert trainer.validator(1)["en"]["wer"] == pytest.approx(wer)
    expected = score([Utterance("a", ["one", "two", "three"], hypothesis.split())]).wer
    assert wer == pytest.approx(expected if expected > 1 else 100 * expected)


@pytest.mark.parametrize(("wer_cuts", "decoded"), [(0, 0), (1, 1), (2, 2), (3, 3), (50, 3)])
def test_the_decoded_cuts_are_distributed_over_the_dev_set(corpus, tmp_path, monkeypatch, wer_cuts, decoded):
    config = tiny_run.config(corpus, tmp_path, "en", valid_wer_cuts=wer_cuts)
    trainer = tiny_run.make_trainer(replace(config, data=replace(config.data, max_duration=2.0)))
    num_frames = []
    set_hypotheses(lambda frames: num_frames.append(frames) or "one", monkeypatch, trainer.tokenizer)
    trainer.validator(1)
    assert len(num_frames) == decoded


def test_ranks_share_the_validation_and_return_the_same_metrics(corpus, tmp_path):
    metrics, read = {}, {}
    for world_size in (1, 2):
        fork_ranks(_validate, world_size, tmp_path / str(world_size), corpus, tmp_path)
        for rank in range(world_size):
            saved = torch.load(tmp_path / f"{rank}-of-{world_size}.pt", weights_only=False)
            metrics[world_size, rank], read[world_size, rank] = saved
    for language, expected in metrics[1, 0].items():
        assert "wer" in expected
        for rank in range(2):
            assert metrics[2, rank][language] == pytest.approx(expected)
    assert read[2, 0] and read[2, 1], "both ranks read features"
    assert sorted(read[2, 0] + read[2, 1]) == sorted(read[1, 0]), "one rank reads the features of a cut"


def _validate(rank, corpus, folder):
    """Save the metrics, and the ids of the cuts whose features this rank has read."""
    config = tiny_run.config(corpus, folder / "exp")
    trainer = tiny_run.make_trainer(replace(config, data=replace(config.data, max_duration=2.0)), rank)
    read, load = [], SpeechDataset.__getitem__

    def record(dataset, plan):
        read.extend(plan.cuts.ids)
        return load(dataset, plan)

    SpeechDataset.__getitem__ = record  # in this process, which is a fork
    torch.save((trainer.validator(1), read), folder / f"{rank.index}-of-{rank.world_size}.pt")
