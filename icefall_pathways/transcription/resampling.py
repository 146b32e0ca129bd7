"""Changing the sample rate of audio that is still coming in."""

import math

import torch
from torch import Tensor

_ZERO_CROSSINGS = 6  # of the filter, on either side
_ROLLOFF = 0.99  # of half the lower rate: where the filter cuts off


class StreamingResampler:
    """Band-limited interpolation by a windowed sinc; the samples are those of `torchaudio.functional.resample`.

    Memory and delay are those of the filter: some samples. Any two rates will do.

    Args:
      from_rate: Sample rate of what comes in, in Hz.
      to_rate: Sample rate of what goes out.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        divisor = math.gcd(from_rate, to_rate)
        self._from, self._to = from_rate // divisor, to_rate // divisor
        # Everything is in units of incoming samples: outgoing sample n is at place n * from / to.
        cutoff = _ROLLOFF * min(self._from, self._to) / self._from
        self._reach = math.ceil(_ZERO_CROSSINGS / cutoff)
        taps = torch.arange(1 - self._reach, self._reach + 1, dtype=torch.float64)
        phases = torch.arange(self._to, dtype=torch.float64) / self._to
        distance = (cutoff * (taps - phases[:, None])).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = torch.cos(distance * math.pi / (2 * _ZERO_CROSSINGS)) ** 2
        self._filters = (cutoff * torch.sinc(distance) * window).float()  # (to, taps)
        self._samples = torch.zeros(self._reach)  # silence before the beginning
        self._first = -self._reach  # the place of _samples[0]
        self._next = 0  # the outgoing sample that comes next

    def accept(self, samples: Tensor) -> Tensor:
        """Take the next samples (n,); returns those (m,) that became certain."""
        self._samples = torch.cat([self._samples, samples])
        end = self._first + self._samples.numel()
        # The last tap of outgoing sample n is at floor(n * from / to) + reach, which must be before `end`.
        return self._up_to(-(-(end - self._reach) * self._to // self._from))

    def flush(self) -> Tensor:
        """The last samples (m,) of a stream that is over."""
        length = self._first + self._samples.numel()
        self._samples = torch.cat([self._samples, torch.zeros(self._reach + 1)])
        return self._up_to(-(-length * self._to // self._from))

    def _up_to(self, end: int) -> Tensor:
        if end <= self._next:
            return torch.zeros(0)
        number = torch.arange(self._next, end)
        place = torch.div(number * self._from, self._to, rounding_mode="floor")
        windows = self._samples.unfold(0, self._filters.size(1), 1)[place + 1 - self._reach - self._first]
        out = (windows * self._filters[number * self._from % self._to]).sum(dim=1)
        self._next = end
        passed = max(0, end * self._from // self._to + 1 - self._reach - self._first)
        self._samples = self._samples[passed:].clone()
        self._first += passed
        return out
