"""The definition of the features, offline and streaming: 80 log-mel filter bank energies, 100 frames a second.

kaldifeat computes them everywhere, so that what a stream sees is what training saw. Samples are in [-1, 1] at 16 kHz.
"""

from dataclasses import dataclass

import torch
from lhotse.features.kaldifeat import (
    KaldifeatFbank,
    KaldifeatFbankConfig,
    KaldifeatFrameOptions,
    KaldifeatMelOptions,
)
from torch import Tensor

from icefall_pathways.constants import FRAME_SHIFT, NUM_MEL_BINS, SAMPLE_RATE


@dataclass(frozen=True)
class FbankConfig:
    """Options of the features; a model must be fed the ones that it was trained with.

    Attributes:
      sample_rate: In Hz.
      num_bins: Mel filters.
      low_freq: Lower edge of the lowest filter, in Hz.
      high_freq: Upper edge of the highest filter, in Hz; below 0 it counts down from half the sample rate. kaldifeat
        itself takes 0, which is another set of filters: streams would not fit models trained on Lhotse features.
      frame_length: In samples.
      frame_shift: In samples.
      device: Where they are computed.
    """

    sample_rate: int = SAMPLE_RATE
    num_bins: int = NUM_MEL_BINS
    low_freq: float = 20.0
    high_freq: float = -400.0
    frame_length: int = 400
    frame_shift: int = FRAME_SHIFT
    device: str = "cpu"

    def extractor(self, snip_edges: bool = False) -> KaldifeatFbank:
        """Lhotse's extractor with these options; without `snip_edges` both ends are mirrored, a frame per 10 ms."""
        frames = KaldifeatFrameOptions(
            sampling_rate=self.sample_rate,
            frame_length=self.frame_length / self.sample_rate,
            frame_shift=self.frame_shift / self.sample_rate,
            snip_edges=snip_edges,
            dither=0.0,
        )
        mel = KaldifeatMelOptions(num_bins=self.num_bins, low_freq=self.low_freq, high_freq=self.high_freq)
        return KaldifeatFbank(KaldifeatFbankConfig(frame_opts=frames, mel_opts=mel, device=self.device))


class StreamingFbank:
    """Features of one stream of samples: the frames that the offline extractor gives, as soon as they are certain.

    Frame t reads `frame_length` samples around sample shift * (t + 1/2); beyond either end the signal is mirrored. A
    frame is certain when it no longer reaches over the samples that have come.

    Args:
      config: Options of the features.
    """

    def __init__(self, config: FbankConfig | None = None) -> None:
        self.config = config or FbankConfig()
        self._extractor = self.config.extractor(snip_edges=True)
        self._samples = torch.zeros(0)  # those that later frames read
        self._first = 0  # the place of _samples[0] in the stream
        self._num_frames = 0

    def accept(self, samples: Tensor) -> Tensor:
        """Take the next samples (n,); returns the frames (T, num_bins) that became certain, possibly none."""
        self._samples = torch.cat([self._samples, samples.detach().float().cpu().flatten()])
        certain = (self._num_samples - self._start_of(0) - self.config.frame_length) // self.config.frame_shift + 1
        return self._frames_up_to(certain)

    def flush(self) -> Tensor:
        """The last frames (T, num_bins) of a stream that is over."""
        return self._frames_up_to((self._num_samples + self.config.frame_shift // 2) // self.config.frame_shift)

    @property
    def _num_samples(self) -> int:
        return self._first + self._samples.numel()

    def _start_of(self, frame: int) -> int:
        """The place of a frame's first sample; negative where it reaches over the beginning."""
        return frame * self.config.frame_shift - (self.config.frame_length - self.config.frame_shift) // 2

    def _frames_up_to(self, num_frames: int) -> Tensor:
        if num_frames <= self._num_frames:
            return torch.zeros(0, self.config.num_bins)
        signal = self._mirrored(
            self._start_of(self._num_frames), self._start_of(num_frames - 1) + self.config.frame_length
        )
        self._num_frames = num_frames
        passed = max(0, self._start_of(num_frames)) - self._first
        if passed > 0:
            self._samples = self._samples[passed:]
            self._first += passed
        return self._extractor.extract(signal, self.config.sample_rate).cpu()

    def _mirrored(self, start: int, end: int) -> Tensor:
        """The samples from `start` to `end`, mirrored where they lie before or behind the stream."""
        places = torch.arange(start, end)
        while bool((places.lt(0) | places.ge(self._num_samples)).any()):
            places = torch.where(places.lt(0), -1 - places, places)
            places = torch.where(places.ge(self._num_samples), 2 * self._num_samples - 1 - places, places)
        return self._samples[places - self._first]
