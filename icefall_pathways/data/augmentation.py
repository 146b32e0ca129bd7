"""Data augmentation of training batches, each with its own seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import CutMix, SpecAugment
from torch import Tensor

from icefall_pathways.corpora.path_resolver import PathResolver
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.manifests import read_cuts
from icefall_pathways.data.perturbation import PerturbationConfig, perturb
from icefall_pathways.ranges import Share


@dataclass(frozen=True)
class AugmentationConfig(PerturbationConfig):
    """Options of the augmentation of training batches."""

    enable_spec_aug: bool = True
    """Apply SpecAugment: mask frequency bands and time spans of the features, and warp time."""

    spec_aug_time_warp_factor: int = 80
    """Time warping factor of SpecAugment, in frames; 0: none. Utterances under twice this length are not warped."""

    spec_aug_num_feature_masks: int = 2
    """Number of frequency masks per utterance."""

    spec_aug_feature_mask_size: int = 27
    """Maximum width of a frequency mask, in mel bins."""

    spec_aug_num_frame_masks: int = 10
    """Number of time masks per utterance; short utterances get fewer and shorter ones. 0: none."""

    spec_aug_frame_mask_size: int = 100
    """Maximum length of a time mask, in frames."""

    spec_aug_max_frame_share: Share = 0.15
    """Maximum share of an utterance that time masks cover; 0: none."""

    enable_musan: bool = False
    """Mix in noise, music, and babble of MUSAN with probability 0.5 and an SNR of 10 to 20 dB."""

    musan_cuts: Path = Path("data/fbank/musan_cuts.jsonl.gz")
    """The cuts of MUSAN."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.spec_aug_max_frame_share
        if share != 0 and not 0.05 <= share <= 1:  # lhotse fails if the share is less than one frame
            raise ValueError(f"--spec-aug-max-frame-share is {share}: expected 0, or 0.05 to 1")


class Augmentation:
    """Mix noise into cuts, perturb and mask features, with random numbers of the global random state; see `seeded`.

    Args:
      config: The options.

    Raises:
      ValueError: The cuts of MUSAN are missing.
      DataError: The cuts of MUSAN are damaged, or refer to audio or features outside of files.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self._noise: CutSet | None = None
        if config.enable_musan:
            if not config.musan_cuts.is_file():
                raise ValueError(f"no {config.musan_cuts}: run ./prepare.sh --musan-dir DIR, or use --enable-musan 0")
            paths = PathResolver(config.musan_cuts.parent)
            self._noise = CutSet.from_cuts(map(paths.resolve, read_cuts(config.musan_cuts)))
        self._spec_augment = _spec_augment(config) if config.enable_spec_aug else None
        self._config = config

    def mix(self, cuts: CutSet) -> CutSet:
        """Mix noise into about half of the cuts; ids, durations, and supervisions do not change."""
        if self._noise is None:
            return cuts
        rng = random.Random(random.getrandbits(32))
        return CutMix(self._noise, snr=(10, 20), p=0.5, pad_to_longest=False, preserve_id=True, seed=rng)(cuts)

    def perturb(self, batch: Batch, seed: int) -> Batch:
        """Perturb a batch before the normalization of its features; see `perturbation.perturb`."""
        return perturb(batch, self._config, seed)

    def mask(self, features: Tensor, num_frames: Tensor) -> Tensor:
        """Apply SpecAugment to the features (N, T, F) of utterances of `num_frames` (N,) frames."""
        if self._spec_augment is None:
            return features
        numbers = torch.arange(len(num_frames), dtype=num_frames.dtype)
        segments = torch.stack([numbers, torch.zeros_like(numbers), num_frames], dim=1)
        masked: Tensor = self._spec_augment(features, supervision_segments=segments)
        return masked


def _spec_augment(config: AugmentationConfig) -> SpecAugment:
    # Lhotse divides by the number of time masks, and draws their lengths from 0 to one less than the maximum.
    has_time_masks = config.spec_aug_num_frame_masks > 0 and config.spec_aug_max_frame_share > 0
    return SpecAugment(
        time_warp_factor=config.spec_aug_time_warp_factor or None,
        num_feature_masks=config.spec_aug_num_feature_masks,
        features_mask_size=config.spec_aug_feature_mask_size,
        num_frame_masks=config.spec_aug_num_frame_masks if has_time_masks else 1,
        frames_mask_size=config.spec_aug_frame_mask_size if has_time_masks else 1,
        max_frames_mask_fraction=config.spec_aug_max_frame_share if has_time_masks else 1.0,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random states of Python, NumPy, and torch's CPU generator; restore them on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())  # does not affect the generators of GPUs
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
