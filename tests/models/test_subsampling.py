import torch

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.models.emformer.subsampling import LOOK_AHEAD, EmformerSubsampling


def test_chunks_give_the_frames_of_the_utterance():
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
    seen = x.grad.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    assert seen == list(range(20, 27))


def test_speech_enters_the_convolutions_at_about_unit_scale():
    """Log mel energies of speech lie around -5 with deviation 3; silence is at -23."""
    entered = []
    subsampling = EmformerSubsampling(80, 24, (4, 8))
    subsampling.conv.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    subsampling(torch.randn(1, 100, 80) * 3 - 5)
    assert abs(entered[0].mean()) < 1.0
    assert 0.5 < entered[0].std() < 1.5
