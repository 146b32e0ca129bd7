"""Augmentation draws from its seed alone, and leaves supervisions and the trainer's random numbers alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from speech_cuts import make_cuts

from icefall_pathways.data.augmentation import Augmentation, AugmentationConfig, seeded


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_draws_the_same_and_leaves_no_trace() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draws()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with seeded(5):
        first = draws()
    assert draws() == expected
    with seeded(5):
        assert draws() == first
    with seeded(6):
        assert draws() != first


def masked(config: AugmentationConfig, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(4, frames, 80)
    segments = torch.tensor([[i, 0, frames] for i in range(4)])
    with seeded(3):
        return features, Augmentation(config).transforms[0](features.clone(), supervision_segments=segments)


@pytest.mark.parametrize("frames", [30, 100, 400])
def test_spec_augment_masks_at_most_its_share_of_frames(frames: int) -> None:
    config = AugmentationConfig(spec_aug_num_feature_masks=0, spec_aug_time_warp_factor=0)
    features, augmented = masked(config, frames)
    changed = (features != augmented).any(dim=2).float().mean(dim=1)
    assert changed.max() > 0
    assert changed.max() <= 0.15 + 1 / frames


def test_spec_augment_masks_bands_of_at_most_their_width() -> None:
    config = AugmentationConfig(spec_aug_num_frame_masks=0, spec_aug_time_warp_factor=0, spec_aug_num_feature_masks=1)
    features, augmented = masked(config, 100)
    changed = features != augmented
    assert torch.equal(changed.any(dim=1), changed.all(dim=1))  # a band is masked from the first frame to the last
    widths = changed.any(dim=1).sum(dim=1)
    assert 0 < widths.max() <= 27
    for bins in changed.any(dim=1):
        assert (bins.int().diff().abs().sum() + bins[0] + bins[-1]) in (0, 2)  # one band


def test_spec_augment_warps_time_and_keeps_the_length() -> None:
    config = AugmentationConfig(spec_aug_num_frame_masks=0, spec_aug_num_feature_masks=0)
    features, augmented = masked(config, 400)
    assert features.shape == augmented.shape
    assert not torch.equal(features, augmented)
    short, unwarped = masked(config, 100)
    assert torch.equal(short, unwarped)


def test_spec_augment_is_off_on_request() -> None:
    assert Augmentation(AugmentationConfig(enable_spec_aug=False)).transforms == []


def test_noise_is_mixed_into_some_cuts_and_the_rest_stays(tmp_path: Path) -> None:
    noise = make_cuts(tmp_path, "noise", "en", [300, 500])
    for cut in noise:
        cut.supervisions = []
    path = tmp_path / "musan_cuts.jsonl.gz"
    CutSet.from_cuts(noise).to_file(path)
    clean = CutSet.from_cuts(make_cuts(tmp_path, "clean", "fr", [100, 150, 120, 90, 80, 110, 95, 130]))
    augmentation = Augmentation(AugmentationConfig(enable_musan=True, musan_cuts=path))
    with seeded(4):
        mixed = augmentation.mix(clean)
    with seeded(4):
        again = augmentation.mix(clean)
    changed = 0
    for before, after, repeated in zip(clean, mixed, again, strict=True):
        assert (before.id, before.num_frames) == (after.id, after.num_frames)
        assert [s.language for s in after.supervisions] == ["fr"]
        changed += not np.array_equal(before.load_features(), after.load_features())
        assert np.array_equal(after.load_features(), repeated.load_features())
    assert 0 < changed < 8


def test_missing_noise_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no .*musan\.jsonl\.gz: run .*--enable-musan 0"):
        Augmentation(AugmentationConfig(enable_musan=True, musan_cuts=tmp_path / "musan.jsonl.gz"))
