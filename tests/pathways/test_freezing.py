import pytest
import torch
from all_layer_types import LANGUAGES, random_masks
from torch import nn

from icefall_pathways.optim.averaging import ModelAverage
from icefall_pathways.optim.masked_adamw import MaskedAdamW
from icefall_pathways.pathways.activation import PathwayModule
from icefall_pathways.pathways.freezing import freeze_languages
from icefall_pathways.pathways.masks import MasksError, PathwayMasks

pytestmark = pytest.mark.usefixtures("device")


def train(model, masks, trainable, language, x, average=None, updates=20):
    """Train with weight decay, clipping and averaging; return the losses."""
    optimizer = MaskedAdamW(model.named_parameters(), lr=0.05, weight_decay=0.5, max_norm=1.0)
    losses = []
    for update in range(1, updates + 1):
        loss = (PathwayModule(model, masks)(language, x) - 1).square().mean()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.activate(trainable, language)
        optimizer.step()
        if average is not None:
            average.update(model, update)
    return losses


def test_outputs_of_frozen_languages_are_bitwise_unchanged_by_training_another(model, masks, x):
    # First, since newer torch has other kernels for frozen parameters.
    trainable = freeze_languages(model, masks, ["en", "fr"])
    with torch.no_grad():
        before = {language: PathwayModule(model, masks)(language, x) for language in LANGUAGES}
    average = ModelAverage(model, period=1)
    losses = train(model, masks, trainable, "it", x, average)
    assert losses[-1] < 0.8 * losses[0]
    for weights in (model.state_dict(), average.state_dict()):
        model.load_state_dict(weights)
        for language in ("en", "fr"):
            with torch.no_grad():
                after = PathwayModule(model, masks)(language, x)
            assert after.cpu().numpy().tobytes() == before[language].cpu().numpy().tobytes()
        assert not torch.equal(PathwayModule(model, masks)("it", x), before["it"])


def test_training_a_language_changes_others_without_freezing(model, masks, x):
    before = PathwayModule(model, masks)("en", x).detach()
    train(model, masks, masks, "it", x)
    assert not torch.equal(PathwayModule(model, masks)("en", x), before)


def test_entries_of_frozen_languages_are_not_trainable(model, masks):
    trainable = freeze_languages(model, masks, ["en", "fr"])
    for name in masks.names:
        frozen = masks.mask(name, "en") | masks.mask(name, "fr")
        assert torch.equal(trainable.mask(name, "it"), masks.mask(name, "it") & ~frozen)
        assert not trainable.mask(name, "en").any()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(masks.names)


def test_language_without_exclusive_entries_is_rejected(model):
    masks = PathwayMasks.dense(model, LANGUAGES)
    with pytest.raises(
        MasksError, match="nothing is left to train for it: the frozen languages en, fr use every entry"
    ):
        freeze_languages(model, masks, ["en", "fr"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(MasksError, match="no pathway for language 'nl'"):
        freeze_languages(model, masks, ["nl"])


def test_batch_statistics_are_rejected():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) tracks batch statistics"):
        freeze_languages(model, random_masks(model), ["en"])
