"""Streaming sample rate conversion."""

import math

import torch
from torch import Tensor

_ZERO_CROSSINGS = 6  # of the sinc filter, on either side
_ROLLOFF = 0.99  # cutoff, as a fraction of half the lower rate


class StreamingResampler:
    """Resample a stream by windowed-sinc interpolation, as `torchaudio.functional.resample` does with whole signals.

    Buffer and delay are half the filter's length, a few samples. Any two rates are supported.

    Args:
      from_rate: Input sample rate in Hz.
      to_rate: Output sample rate in Hz.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        divisor = math.gcd(from_rate, to_rate)
        self._from, self._to = from_rate // divisor, to_rate // divisor
        # Positions are in input samples: output sample n is at position n * from / to.
        cutoff = _ROLLOFF * min(self._from, self._to) / self._from
        self._half_width = math.ceil(_ZERO_CROSSINGS / cutoff)
        taps = torch.arange(1 - self._half_width, self._half_width + 1, dtype=torch.float64)
        phases = torch.arange(self._to, dtype=torch.float64) / self._to
        distance = (cutoff * (taps - phases[:, None])).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = torch.cos(distance * math.pi / (2 * _ZERO_CROSSINGS)) ** 2
        self._filters = (cutoff * torch.sinc(distance) * window).float()  # (to, taps)
        self._samples = torch.zeros(self._half_width)  # silence before the start
        self._first = -self._half_width  # position of _samples[0]
        self._next = 0  # index of the next output sample

    def accept(self, samples: Tensor) -> Tensor:
        """Append input samples (n,), and return the output samples (m,) that are complete."""
        self._samples = torch.cat([self._samples, samples])
        end = self._first + self._samples.numel()
        # The last tap of output sample n is at floor(n * from / to) + half_width, which must be before `end`.
        return self._up_to(-(-(end - self._half_width) * self._to // self._from))

    def flush(self) -> Tensor:
        """Return the last output samples (m,) of a finished stream."""
        length = self._first + self._samples.numel()
        self._samples = torch.cat([self._samples, torch.zeros(self._half_width + 1)])
        return self._up_to(-(-length * self._to // self._from))

    def _up_to(self, end: int) -> Tensor:
        if end <= self._next:
            return torch.zeros(0)
        index = torch.arange(self._next, end)
        position = torch.div(index * self._from, self._to, rounding_mode="floor")
        windows = self._samples.unfold(0, self._filters.size(1), 1)[position + 1 - self._half_width - self._first]
        out = (windows * self._filters[index * self._from % self._to]).sum(dim=1)
        self._next = end
        consumed = max(0, end * self._from // self._to + 1 - self._half_width - self._first)
        self._samples = self._samples[consumed:].clone()
        self._first += consumed
        return out
