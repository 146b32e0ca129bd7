"""Augmentation: a function of its seed, without effect on supervisions and on the global random state."""

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


def test_seeded_draws_are_reproducible_and_the_random_state_is_restored() -> None:
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
    with seeded(3):
        return features, Augmentation(config).mask(features.clone(), torch.full((4,), frames))


@pytest.mark.parametrize("frames", [30, 100, 400])
def test_time_masks_cover_at_most_the_configured_share(frames: int) -> None:
    config = AugmentationConfig(spec_aug_num_feature_masks=0, spec_aug_time_warp_factor=0)
    features, augmented = masked(config, frames)
    changed = (features != augmented).any(dim=2).float().mean(dim=1)
    assert changed.max() > 0
    assert changed.max() <= 0.15 + 1 / frames


def test_frequency_masks_have_at_most_the_configured_width() -> None:
    config = AugmentationConfig(spec_aug_num_frame_masks=0, spec_aug_time_warp_factor=0, spec_aug_num_feature_masks=1)
    features, augmented = masked(config, 100)
    changed = features != augmented
    assert torch.equal(changed.any(dim=1), changed.all(dim=1))  # a frequency mask covers all frames
    widths = changed.any(dim=1).sum(dim=1)
    assert 0 < widths.max() <= 27
    for bins in changed.any(dim=1):
        assert (bins.int().diff().abs().sum() + bins[0] + bins[-1]) in (0, 2)  # one band


def test_time_warping_preserves_the_length_and_skips_short_utterances() -> None:
    config = AugmentationConfig(spec_aug_num_frame_masks=0, spec_aug_num_feature_masks=0)
    features, augmented = masked(config, 400)
    assert features.shape == augmented.shape
    assert not torch.equal(features, augmented)
    short, unwarped = masked(config, 100)
    assert torch.equal(short, unwarped)


def test_spec_augment_can_be_disabled() -> None:
    features, augmented = masked(AugmentationConfig(enable_spec_aug=False), 400)
    assert torch.equal(features, augmented)


def test_noise_is_mixed_into_some_cuts_without_changing_ids_or_supervisions(tmp_path: Path) -> None:
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


def test_error_of_missing_noise_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no .*musan\.jsonl\.gz: run .*--enable-musan 0"):
        Augmentation(AugmentationConfig(enable_musan=True, musan_cuts=tmp_path / "musan.jsonl.gz"))
