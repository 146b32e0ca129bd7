"""Feature extraction, offline and streaming: 80 log-mel filter bank energies, 100 frames per second.

The same library computes both, so that streaming recognition uses the same features as training: kaldifeat, or
kaldi-native-fbank if kaldifeat cannot be imported; it needs no compiler. Samples are in [-1, 1] at 16 kHz.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.features.kaldifeat import (
    KaldifeatFbank,
    KaldifeatFbankConfig,
    KaldifeatFrameOptions,
    KaldifeatMelOptions,
)
from torch import Tensor

from icefall_pathways.constants import FRAME_SHIFT, NUM_MEL_BINS, SAMPLE_RATE
from icefall_pathways.data.level import LevelNorm, LevelNormalizer
from icefall_pathways.errors import first_line

FbankBackend = Literal["kaldifeat", "kaldi-native-fbank"]


def fbank_backend() -> FbankBackend:
    """Return the library that computes features: kaldifeat if it can be imported, otherwise kaldi-native-fbank.

    The features of both agree to single precision, so that stored features and models do not depend on the library.
    """
    try:
        import kaldifeat  # noqa: F401  # not at import time: reading stored features does not need it
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"kaldifeat is installed but cannot be imported ({first_line(error)})", stacklevel=2)
        return "kaldi-native-fbank"
    return "kaldifeat"


@dataclass(frozen=True)
class FbankConfig:
    """Options of the feature extraction; a model requires the options that it was trained with.

    Attributes:
      sample_rate: Sample rate in Hz.
      num_bins: Number of mel filters.
      low_freq: Lower edge of the lowest filter, in Hz.
      high_freq: Upper edge of the highest filter, in Hz; a negative value is relative to half the sample rate. The
        default is Lhotse's; kaldifeat's default, 0, results in different filters.
      frame_length: Window length in samples.
      frame_shift: Window shift in samples.
      level_norm: Normalization of the level; stored features are normalized when they are read.
      device: Device of the computation.
    """

    sample_rate: int = SAMPLE_RATE
    num_bins: int = NUM_MEL_BINS
    low_freq: float = 20.0
    high_freq: float = -400.0
    frame_length: int = 400
    frame_shift: int = FRAME_SHIFT
    level_norm: LevelNorm = "none"
    device: str = "cpu"

    @property
    def frame_seconds(self) -> float:
        """The frame shift in seconds."""
        return self.frame_shift / self.sample_rate

    def extractor(self, snip_edges: bool = False) -> KaldifeatFbank:
        """Return Lhotse's extractor with these options, without `level_norm`, computed by `fbank_backend()`.

        Args:
          snip_edges: Whether to compute only frames that lie inside the signal. Otherwise the signal is mirrored at
            both ends and has one frame per frame shift.
        """
        frames = KaldifeatFrameOptions(
            sampling_rate=self.sample_rate,
            frame_length=self.frame_length / self.sample_rate,
            frame_shift=self.frame_seconds,
            snip_edges=snip_edges,
            dither=0.0,
        )
        mel = KaldifeatMelOptions(num_bins=self.num_bins, low_freq=self.low_freq, high_freq=self.high_freq)
        config = KaldifeatFbankConfig(frame_opts=frames, mel_opts=mel, device=self.device)
        return KaldifeatFbank(config) if fbank_backend() == "kaldifeat" else KaldiNativeFbank(config)


@register_extractor
class KaldiNativeFbank(KaldifeatFbank):
    """Lhotse's kaldifeat extractor, computed by kaldi-native-fbank on the CPU.

    Manifests record the same feature type, "kaldifeat-fbank", for both. Lhotse creates an extractor of that type to mix
    stored features; it is registered as this one, which has the same rules of mixing and does not require kaldifeat.
    """

    def __init__(self, config: KaldifeatFbankConfig | None = None) -> None:
        FeatureExtractor.__init__(self, config)  # the constructor of KaldifeatFbank requires kaldifeat

    def extractor(self, signals: list[Tensor], chunk_size: int | None) -> list[Tensor]:
        """Return the features (T, num_bins) of each signal (n,).

        Replaces the callable `kaldifeat.Fbank` that the base class calls.

        Args:
          signals: Samples in [-1, 1].
          chunk_size: Ignored; kaldi-native-fbank computes one frame at a time.
        """
        import kaldi_native_fbank as knf

        options = knf.FbankOptions.from_dict(self.config.to_dict())
        batch = []
        for signal in signals:
            fbank = knf.OnlineFbank(options)
            fbank.accept_waveform(self.config.frame_opts.sampling_rate, signal.tolist())
            fbank.input_finished()
            frames = np.empty((fbank.num_frames_ready, fbank.dim), np.float32)
            for index in range(len(frames)):
                frames[index] = fbank.get_frame(index)
            batch.append(torch.from_numpy(frames).to(self.device))
        return batch


class StreamingFbank:
    """Online features of one stream of samples, equal to the offline features.

    Frame t covers `frame_length` samples around sample frame_shift * (t + 1/2); outside the stream the signal is
    mirrored. A frame is final, and returned, when all its samples have arrived.

    Args:
      config: Options of the features.
      extractor: Result of `config.extractor(snip_edges=True)`, which streams may share: its filters take 85 kB. None:
        create one.
    """

    def __init__(self, config: FbankConfig | None = None, extractor: KaldifeatFbank | None = None) -> None:
        self.config = config or FbankConfig()
        self._extractor = self.config.extractor(snip_edges=True) if extractor is None else extractor
        self._samples = torch.zeros(0)  # the tail of the stream, which later frames cover
        self._offset = 0  # position of _samples[0] in the stream
        self._num_frames = 0
        self._normalizer = LevelNormalizer() if self.config.level_norm == "running-max" else None

    def accept(self, samples: Tensor) -> Tensor:
        """Append samples (n,) to the stream and return the frames (T, num_bins) that became final, T >= 0."""
        self._samples = torch.cat([self._samples, samples.detach().float().cpu().flatten()])
        num_final = (self._num_samples - self._start_of(0) - self.config.frame_length) // self.config.frame_shift + 1
        return self._frames_up_to(num_final)

    def missing_samples(self, num_frames: int) -> int:
        """Return the number of further samples that complete `num_frames` further frames."""
        last = self._num_frames + num_frames - 1
        return self._start_of(last) + self.config.frame_length - self._num_samples

    def flush(self) -> Tensor:
        """Finish the stream and return its last frames (T, num_bins)."""
        return self._frames_up_to((self._num_samples + self.config.frame_shift // 2) // self.config.frame_shift)

    @property
    def _num_samples(self) -> int:
        return self._offset + self._samples.numel()

    def _start_of(self, frame: int) -> int:
        """Return the position of a frame's first sample; negative if the frame starts before the stream."""
        return frame * self.config.frame_shift - (self.config.frame_length - self.config.frame_shift) // 2

    def _frames_up_to(self, num_frames: int) -> Tensor:
        if num_frames <= self._num_frames:
            return torch.zeros(0, self.config.num_bins)
        signal = self._mirrored(
            self._start_of(self._num_frames), self._start_of(num_frames - 1) + self.config.frame_length
        )
        self._num_frames = num_frames
        num_consumed = max(0, self._start_of(num_frames)) - self._offset
        if num_consumed > 0:
            self._samples = self._samples[num_consumed:].clone()  # a view would keep all samples in memory
            self._offset += num_consumed
        features: Tensor = self._extractor.extract(signal, self.config.sample_rate).cpu()
        return features if self._normalizer is None else self._normalizer.accept(features)

    def _mirrored(self, start: int, end: int) -> Tensor:
        """Return the samples from `start` to `end`, mirrored at the ends of the stream."""
        positions = torch.arange(start, end)
        while bool((positions.lt(0) | positions.ge(self._num_samples)).any()):
            positions = torch.where(positions.lt(0), -1 - positions, positions)
            positions = torch.where(positions.ge(self._num_samples), 2 * self._num_samples - 1 - positions, positions)
        return self._samples[positions - self._offset]
