"""Add a language to a pathways model without changing the outputs of its other languages."""

from dataclasses import replace

import pytest
import tiny_run
import torch
from speech_cuts import lengths, make_cuts, write_cuts

from icefall_pathways.experiment import checkpoints
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import PathwayModule, activate
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.config import PruningConfig
from icefall_pathways.training.metrics import read_metrics


@pytest.fixture(scope="module")
def pathways(corpus, tmp_path_factory):
    """Return the folder of pathways of en and fr, trained from random weights with random masks."""
    exp_dir = tmp_path_factory.mktemp("exp") / "pathways"
    config = tiny_run.config(corpus, exp_dir, "en fr", masks=exp_dir / "given.safetensors", num_updates=6)
    model = build_model(replace(config.model, ctc_head=True), 20)
    tiny_run.save_random_masks(model, config.training.masks, ["en", "fr"])
    runs.train(config)
    return exp_dir


def extend(corpus, pathways, exp_dir, languages="it", **pruning):
    """Return the options of a search for the mask of a new language."""
    pruning = {"sparsity": 0.5, "prune_rounds": 1, "updates_per_round": 2} | pruning
    options = PruningConfig(extend_masks=pathways / "masks.safetensors", **pruning)
    return tiny_run.search(corpus, exp_dir, options, languages, init_from=pathways, init_avg=1)


def outputs(exp_dir, language):
    """Return encoder frames, losses and streamed frames of the model that decoding loads, for a language."""
    model = checkpoints.load_model(exp_dir).model
    masks = PathwayMasks.load(exp_dir / "masks.safetensors")
    x = torch.randn(2, 120, 80, generator=torch.Generator().manual_seed(1)) - 8
    lens, y, y_lens = torch.tensor([120, 90]), torch.tensor([[5, 7, 3], [4, 9, 0]]), torch.tensor([3, 2])
    chunk, chunk_lens = x[:, : model.chunk_window], torch.full((2,), min(model.chunk_window, 120))
    with torch.no_grad():
        losses = PathwayModule(model, masks)(language, x, lens, y, y_lens)
        with activate(model, masks, language):
            encoded, _ = model.encode(x, lens)
            streamed, _, states = model.stream(chunk, chunk_lens, model.init_states(2))
            scores = model.joiner(encoded.unsqueeze(2), model.decoder(y).unsqueeze(1)[:, :, :1])
    return [*losses, encoded, streamed, *states, scores]


def same_bits(a, b):
    return len(a) == len(b) and all(x.numpy().tobytes() == y.numpy().tobytes() for x, y in zip(a, b, strict=True))


def test_outputs_of_frozen_languages_are_bitwise_equal_and_the_new_language_improves(corpus, pathways, tmp_path):
    runs.find_masks(extend(corpus, pathways, tmp_path / "search"))
    masks = tmp_path / "search" / "masks.safetensors"
    before = {language: outputs(pathways, language) for language in ("en", "fr")}

    options = {"freeze_languages": "en fr", "weight_decay": 0.5, "num_updates": 20, "base_lr": 0.05}
    config = tiny_run.config(corpus, tmp_path / "more", "it", init_from=pathways, init_avg=1, masks=masks, **options)
    runs.train(config)
    for language, expected in before.items():
        assert same_bits(outputs(tmp_path / "more", language), expected)
    valid = [r for r in read_metrics(tmp_path / "more" / "metrics.jsonl") if r["kind"] == "valid"]
    assert {record["language"] for record in valid} == {"it"}
    assert valid[-1]["loss"] < valid[0]["loss"] - 0.3


def test_shared_entries_are_trained_without_freezing(corpus, pathways, tmp_path):
    runs.find_masks(extend(corpus, pathways, tmp_path / "search"))
    masks = tmp_path / "search" / "masks.safetensors"
    runs.train(tiny_run.config(corpus, tmp_path / "more", "en fr it", init_from=pathways, masks=masks))
    assert PathwayMasks.load(tmp_path / "more" / "masks.safetensors").languages == ("en", "fr", "it")
    assert not same_bits(outputs(tmp_path / "more", "en"), outputs(pathways, "en"))


def test_a_new_language_has_a_new_bit_and_the_other_masks_are_unchanged(corpus, pathways, tmp_path):
    runs.find_masks(extend(corpus, pathways, tmp_path / "search"))
    old = PathwayMasks.load(pathways / "masks.safetensors")
    new = PathwayMasks.load(tmp_path / "search" / "masks.safetensors")
    assert new.languages == ("en", "fr", "it")
    for name in old.names:
        assert torch.equal(new.mask(name, "en"), old.mask(name, "en"))
        assert torch.equal(new.mask(name, "fr"), old.mask(name, "fr"))
        assert int(new.mask(name, "it").sum()) == round(0.5 * new.codes[name].numel())


def test_masks_that_cannot_be_extended_raise_before_the_search(corpus, pathways, tmp_path):
    cases = [
        ({"languages": "fr"}, "has masks of fr already"),
        ({"prune_scope": "encoder"}, "use the scope that the masks were found with"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            runs.find_masks(extend(corpus, pathways, tmp_path / "search", **options))
    assert not (tmp_path / "search").exists()


def test_a_vocabulary_that_does_not_cover_the_language_raises(corpus, pathways, tmp_path):
    fbank = tmp_path / "fbank"
    fbank.mkdir()
    for split, num_cuts in (("train", 6), ("dev", 2)):
        write_cuts(fbank, "pl", split, make_cuts(fbank, split, "pl", lengths(num_cuts), "dwa trzy łąka"))
    search = extend(corpus, pathways, tmp_path / "search", "pl")
    with pytest.raises(ValueError, match=r"the vocabulary has no token for .*ą ł .*transcripts of polish"):
        runs.find_masks(replace(search, data=replace(search.data, manifest_dir=fbank)))


def test_freezing_trained_languages_or_without_masks_raises(corpus, pathways, tmp_path):
    masks = pathways / "masks.safetensors"
    config = tiny_run.config(corpus, tmp_path / "more", "fr", init_from=pathways, masks=masks, freeze_languages="en fr")
    with pytest.raises(ValueError, match="fr in both --languages and --freeze-languages"):
        runs.train(config)
    with pytest.raises(ValueError, match="--freeze-languages needs --masks"):
        tiny_run.config(corpus, tmp_path / "more", "fr", freeze_languages="en")
    with pytest.raises(ValueError, match="--freeze-languages needs --init-from"):
        tiny_run.config(corpus, tmp_path / "more", "fr", freeze_languages="en", masks=masks)
