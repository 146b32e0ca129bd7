"""The predictor and the joiner equal icefall's."""

import pytest
import torch
from public_numbers import load_numbers

from icefall_pathways.models.joiner import Joiner
from icefall_pathways.models.predictor import Predictor

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module")
def reference(device):
    return load_numbers("causal")


def _weights(reference, prefix):
    return {name[len(prefix) :]: value for name, value in reference["state_dict"].items() if name.startswith(prefix)}


def test_predictor_equals_icefall(reference):
    head = reference["head"]
    predictor = Predictor(30, 48, context_size=2)
    predictor.load_state_dict(_weights(reference, "decoder."))
    torch.testing.assert_close(predictor(head["y"]), head["decoder_out"], atol=1e-5, rtol=0)
    assert (head["ctx"] < 0).any()
    torch.testing.assert_close(predictor(head["ctx"], need_pad=False), head["decoder_out_ctx"], atol=1e-5, rtol=0)


def test_joiner_equals_icefall(reference):
    head = reference["head"]
    joiner = Joiner(64, 48, 40, 30)
    joiner.load_state_dict(_weights(reference, "joiner."))
    encoder_out, decoder_out = head["enc"], head["decoder_out"]
    out = joiner(encoder_out[:, :, None], decoder_out[:, None])
    torch.testing.assert_close(out, head["joiner_out"], atol=1e-5, rtol=0)
    projected = joiner(
        joiner.encoder_proj(encoder_out)[:, :, None], joiner.decoder_proj(decoder_out)[:, None], project_input=False
    )
    torch.testing.assert_close(projected, out)


def test_padding_embeds_to_zero():
    predictor = Predictor(10, 8, context_size=3)
    y = torch.tensor([[0, 4, 5]])
    padded = predictor(torch.tensor([[-1, -1, 0, 4, 5]]), need_pad=False)
    torch.testing.assert_close(predictor(y), padded)
    assert not torch.allclose(padded, predictor(torch.tensor([[0, 0, 0, 4, 5]]), need_pad=False))


def test_predictor_with_context_one_is_an_embedding():
    predictor = Predictor(10, 8, context_size=1)
    assert not hasattr(predictor, "conv")
    torch.testing.assert_close(predictor(torch.tensor([[3, -1]]))[0, 0], predictor.embedding.weight[3])
    assert predictor(torch.tensor([[3, -1]]))[0, 1].abs().sum() == 0


@pytest.mark.parametrize("context_size", [2, 3])
def test_single_predictions_equal_the_whole_sequence(context_size):
    predictor = Predictor(9, 8, context_size)
    y = torch.randint(0, 9, (5, 7))
    padded = torch.nn.functional.pad(y, (context_size - 1, 0), value=-1)
    steps = [predictor(padded[:, t : t + context_size], need_pad=False) for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), predictor(y))
