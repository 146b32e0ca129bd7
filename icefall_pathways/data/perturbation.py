"""Perturbation of log-mel features of training cuts before any normalization: level, silence, noise and bandwidth.

In the log-mel domain, a gain is an additive constant, digital silence is the floor of the extraction, the energies of a
sum of signals add up, and a filter adds a constant per mel bin. Stored and on-the-fly features are therefore perturbed
by the same code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from icefall_pathways.constants import FRAME_SHIFT, SAMPLE_RATE
from icefall_pathways.data.batch import Batch
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.ranges import Options, PositiveFloat, Range, Share, SignedFloat

_FLOOR = math.log(torch.finfo(torch.float32).eps)  # log-mel energy of digital silence
_NEPERS_PER_DB = math.log(10) / 10  # of energy
_NOISE_SHARE = 0.7  # of the perturbed batches; the others get digital silence
_NOISE_LEVELS = -70.0, -15.0  # dB relative to the loudest frame of the cut
_MAX_TILT = 4.0  # nepers between the lowest and the highest mel bin
_NOISE_SECONDS = 20
_NARROW_RATE = 8000  # Hz, of telephones
_SMOOTHING = 7  # frames over which the energy is averaged to find a pause: 70 ms


@dataclass(frozen=True)
class PerturbationConfig(Options):
    """Options of the level, silence, noise and bandwidth of training cuts."""

    shift_perturb: Annotated[float, Range(0)] = 0.32
    """Largest duration of the silence before the cuts of every training batch, in seconds, uniformly distributed, so
    that speech starts anywhere in a chunk; 0: none."""

    volume_perturb: bool = True
    """Change the level of training batches at random."""

    volume_perturb_min: SignedFloat = -30.0
    """Lowest gain of --volume-perturb, in dB."""

    volume_perturb_max: SignedFloat = 6.0
    """Highest gain of --volume-perturb, in dB."""

    silence_perturb: Share = 0.5
    """Share of the training batches whose cuts get silence or noise before, in and after their speech; 0: none."""

    silence_perturb_seconds: PositiveFloat = 3.0
    """Largest duration that --silence-perturb adds to a cut, in seconds; the mean is a third of it."""

    join_perturb: Share = 0.3
    """Share of the training batches whose cuts are joined in pairs, as utterances that follow each other in a stream;
    0: none."""

    join_perturb_seconds: PositiveFloat = 20.0
    """Largest duration of a pair of --join-perturb, in seconds."""

    narrowband_perturb: Share = 0.0
    """Share of the training cuts with the bandwidth of recordings at 8 kHz, as of telephones; 0: none."""

    @property
    def max_added_frames(self) -> int:
        """Largest number of frames that --shift-perturb and --silence-perturb add to a cut."""
        return self.max_shift + self.max_silence

    @property
    def max_shift(self) -> int:
        """Largest number of frames that --shift-perturb adds to a cut."""
        return _num_frames(self.shift_perturb)

    @property
    def max_silence(self) -> int:
        """Largest number of frames that --silence-perturb adds to a cut."""
        return _num_frames(self.silence_perturb_seconds) if self.silence_perturb else 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.volume_perturb_min > self.volume_perturb_max:
            raise ValueError(
                f"--volume-perturb-min is {self.volume_perturb_min:g} and --volume-perturb-max "
                f"{self.volume_perturb_max:g}: expected a minimum that is not above the maximum"
            )


def perturb(batch: Batch, config: PerturbationConfig, seed: int) -> Batch:
    """Return a batch with random levels, silence and noise, whose cuts may be joined in pairs.

    Args:
      batch: A batch with features as computed, without normalization.
      config: The options.
      seed: Seed of the draws; the random states of Python, NumPy and torch are not used.
    """
    perturbed = batch.with_utterances(perturb_features(batch.utterances, config, seed))
    if np.random.default_rng([seed, 1]).random() >= config.join_perturb:
        return perturbed
    return perturbed.join_pairs(_num_frames(config.join_perturb_seconds))


def perturb_features(utterances: Sequence[Tensor], config: PerturbationConfig, seed: int) -> list[Tensor]:
    """Return the log-mel features (T, F) of a batch of utterances with a random level, silence, noise and bandwidth.

    All utterances of a batch get the same gain, and are extended by the same number of frames, so that their order by
    length and the amount of padding do not change. The bandwidth is drawn for each of them.

    Args:
      utterances: Features (T, F) as computed, without normalization.
      config: The options.
      seed: Seed of the draws; the random states of Python, NumPy and torch are not used.
    """
    rng = np.random.default_rng(seed)
    if config.volume_perturb:
        gain = _NEPERS_PER_DB * rng.uniform(config.volume_perturb_min, config.volume_perturb_max)
        utterances = [(x + gain).clamp(min=_FLOOR) for x in utterances]
    if config.shift_perturb:
        num_frames = int(rng.integers(config.max_shift + 1))
        utterances = [torch.cat([x.new_full((num_frames, x.size(1)), _FLOOR), x]) for x in utterances]
    if rng.random() < config.silence_perturb:
        num_frames = round(config.max_silence * rng.random() ** 2)  # short ones are more frequent
        utterances = [_add_silence(x, num_frames, rng) for x in utterances]
    if config.narrowband_perturb:
        is_narrow = rng.random(len(utterances)) < config.narrowband_perturb
        utterances = [_limit_bandwidth(x) if narrow else x for x, narrow in zip(utterances, is_narrow, strict=True)]
    return list(utterances)


def _limit_bandwidth(features: Tensor) -> Tensor:
    """Return features (T, F) with the bandwidth of a recording at 8 kHz."""
    return (features + _narrowband_response().to(features)).clamp(min=_FLOOR)


@lru_cache(maxsize=1)
def _narrowband_response() -> Tensor:
    """Return the log gain (F,) per mel bin of resampling to 8 kHz and back, computed once per process."""
    samples = _noise_samples()
    narrow = soxr.resample(soxr.resample(samples, SAMPLE_RATE, _NARROW_RATE), _NARROW_RATE, SAMPLE_RATE)
    return _log_mel(narrow).exp().mean(0).log() - _log_mel(samples).exp().mean(0).log()


def _num_frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / FRAME_SHIFT)


def _add_silence(speech: Tensor, num_frames: int, rng: np.random.Generator) -> Tensor:
    """Distribute `num_frames` frames of silence or noise over the start, a pause and the end of `speech` (T, F)."""
    before, inside, after = _split(num_frames, rng)
    pause = _find_pause(speech)
    silence = speech.new_full((num_frames, speech.size(1)), _FLOOR)
    parts = [silence[:before], speech[:pause], silence[:inside], speech[pause:], silence[:after]]
    features = torch.cat(parts)
    if rng.random() >= _NOISE_SHARE:
        return features
    noise = _draw_noise(len(features), rng).to(features)
    noise += _energy(speech).max() + _NEPERS_PER_DB * rng.uniform(*_NOISE_LEVELS)
    mixed = features.exp().add(noise.exp()).log().clamp(min=_FLOOR)  # faster than torch.logaddexp
    if rng.random() < 0.5:
        return mixed
    is_speech = torch.cat([torch.full((len(part), 1), index % 2 == 1) for index, part in enumerate(parts)])
    return torch.where(is_speech.to(features.device), features, mixed)


def _split(num_frames: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Split frames at random: all at one position, or at all of them."""
    if rng.random() < 0.5:
        position = int(rng.integers(3))
        before, inside = num_frames * (position == 0), num_frames * (position == 1)
    else:
        first, second = sorted(rng.integers(num_frames + 1, size=2).tolist())
        before, inside = first, second - first
    return before, inside, num_frames - before - inside


def _find_pause(speech: Tensor) -> int:
    """Return the frame around which `speech` (T, F) is quietest, at least an eighth of it away from both ends."""
    start = len(speech) // 8
    inner = _energy(speech)[start : len(speech) - start]
    if len(inner) < _SMOOTHING:
        return len(speech) // 2
    return start + _SMOOTHING // 2 + int(inner.unfold(0, _SMOOTHING, 1).mean(1).argmin())


def _energy(features: Tensor) -> Tensor:
    """Return the log of the mean energy over mel bins, (T,)."""
    return features.logsumexp(1) - math.log(features.size(1))


def _draw_noise(num_frames: int, rng: np.random.Generator) -> Tensor:
    """Return features (num_frames, F) of noise with a random spectral tilt and an energy of about 0."""
    noise = _white_noise()
    frames = (int(rng.integers(len(noise))) + torch.arange(num_frames)) % len(noise)
    tilt = torch.linspace(-0.5, 0.5, noise.size(1)) * rng.uniform(-_MAX_TILT, _MAX_TILT)
    return noise[frames] + tilt


@lru_cache(maxsize=1)
def _white_noise() -> Tensor:
    """Return features (T, F) of white noise with an energy of 0, which are computed once per process."""
    features = _log_mel(_noise_samples())
    return features - _energy(features).mean()


def _noise_samples() -> NDArray[np.float32]:
    """Return samples (n,) of white noise, the same ones at each call."""
    return np.random.default_rng(0).normal(0, 0.1, _NOISE_SECONDS * SAMPLE_RATE).astype(np.float32)


def _log_mel(samples: NDArray[np.float32]) -> Tensor:
    """Return the features (T, F) of samples (n,)."""
    config = FbankConfig()
    return torch.as_tensor(config.extractor().extract(samples, config.sample_rate))
