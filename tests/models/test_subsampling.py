import torch

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.emformer.subsampling import LOOK_AHEAD, EmformerSubsampling


def test_chunked_subsampling_equals_the_whole_utterance():
    subsampling = EmformerSubsampling(80, 24, (4, 8))
    x = torch.randn(2, 4 * 25 + LOOK_AHEAD, 80) * 3 - 8
    whole = subsampling(x)
    assert whole.shape == (2, 25, 24)
    for size in (1, 2, 5):
        pieces = [
            subsampling(x[:, SUBSAMPLING_FACTOR * start : SUBSAMPLING_FACTOR * (start + size) + LOOK_AHEAD])
            for start in range(0, 25, size)
        ]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


def test_receptive_field_is_seven_frames():
    subsampling = EmformerSubsampling(80, 24, (4, 8))
    x = torch.randn(1, 43, 80, requires_grad=True)
    subsampling(x)[0, 5, 3].backward()
    receptive_field = x.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert receptive_field == list(range(20, 27))


def test_convolution_inputs_of_speech_have_about_unit_scale():
    """Log mel energies of speech lie around -5 with deviation 3; silence is at -23."""
    inputs = []
    subsampling = EmformerSubsampling(80, 24, (4, 8))
    subsampling.conv.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    subsampling(torch.randn(1, 100, 80) * 3 - 5)
    assert abs(inputs[0].mean()) < 1.0
    assert 0.5 < inputs[0].std() < 1.5
