"""The language as an input: a vector per language is added to the input of the encoder."""

import pytest
import torch
from drawn_masks import random_masks
from stream_models import MODELS, make_model
from torch import nn

from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.language_input import add_language_input
from icefall_pathways.models.transducer import build_model
from icefall_pathways.pathways.activation import FoldedPathways, activate
from icefall_pathways.pathways.masks import PathwayMasks

LANGUAGES = ("en", "fr")
KINDS = ("emformer-language", "zipformer-language")
ENCODERS = ("emformer", "zipformer")


def make(kind, **options):
    torch.manual_seed(1)
    return build_model(ModelConfig(**MODELS[kind], **options), 20, LANGUAGES).eval()


def features(num_frames=150):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, num_frames, 80, generator=generator) * 2 - 8, torch.tensor([num_frames, num_frames - 31])


@pytest.mark.parametrize("kind", ENCODERS)
@torch.inference_mode()
def test_the_option_only_adds_vectors(kind):
    """All other initial weights, and the output without an active language, have the same bits."""
    plain, model = make(kind), make(kind, language_input=True)
    added = model.state_dict().keys() - plain.state_dict().keys()
    assert added == {"encoder_embed.out.vector_en", "encoder_embed.out.vector_fr"}
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in plain.state_dict().items())
    (expected, _), (actual, _) = plain.encode(*features()), model.encode(*features())
    assert torch.equal(actual, expected)
    with activate(plain, None, "xx"):
        assert torch.equal(plain.encode(*features())[0], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_streams_and_whole_utterances_have_the_vector_of_their_language(kind, masked):
    torch.manual_seed(1)
    model = make_model(kind)
    masks = random_masks(model, LANGUAGES, ["encoder"]) if masked else None
    pathways, outputs = FoldedPathways(model, masks), {}
    x, x_lens = features(model.chunk_window + 3 * model.chunk_shift)
    for language in LANGUAGES:
        with pathways.activate(language):
            outputs[language], _ = model.encode(x, x_lens)
            states, streamed = model.init_states(2), []
            for start in range(0, 3 * model.chunk_shift, model.chunk_shift):
                chunk = x[:, start : start + model.chunk_window]
                frames, _, states = model.stream(chunk, (x_lens - start).clamp(0, model.chunk_window), states)
                streamed.append(frames)
        frames = torch.cat(streamed, dim=1)
        torch.testing.assert_close(frames[0], outputs[language][0, : frames.size(1)], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(outputs["en"], outputs["fr"], atol=0.1)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_vector_is_added_to_the_bias_and_gets_its_gradient(kind):
    model, plain = make(kind, language_input=True), make(kind)
    out = model.encoder_embed.out
    with torch.no_grad():
        plain.encoder_embed.out.bias += out.vector_fr
    with activate(model, None, "fr"):
        encoded, _ = model.encode(*features())
    assert torch.equal(encoded, plain.encode(*features())[0])
    encoded.square().sum().backward()
    assert out.vector_en.grad is None and out.vector_fr.grad.abs().max() > 0
    assert torch.equal(out.vector_fr.grad, out.bias.grad)


def test_languages_with_the_same_mask_differ_by_their_vectors():
    model = make_model("emformer-language")
    masks = PathwayMasks.dense(model, LANGUAGES)
    assert masks.share_mask(LANGUAGES) and not FoldedPathways(model, masks).are_equal(LANGUAGES)
    assert FoldedPathways(make_model("emformer"), masks).are_equal(LANGUAGES)


def test_an_unknown_language_is_an_error():
    pathways = FoldedPathways(make("emformer", language_input=True), None)
    for use in (pathways.check_language, pathways.weights, lambda code: pathways.activate(code).__enter__()):
        with pytest.raises(ValueError, match="no vector of 'it': it has those of en, fr"):
            use("it")


def test_models_without_languages_or_linear_layer_are_rejected():
    with pytest.raises(ValueError, match="needs the languages of the model"):
        build_model(ModelConfig(**MODELS["emformer"], language_input=True), 20)
    with pytest.raises(ValueError, match="which Sequential does not have: use --language-input 0"):
        add_language_input(nn.Sequential(), LANGUAGES)
