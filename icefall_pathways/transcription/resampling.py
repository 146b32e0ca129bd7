"""Streaming sample rate conversion."""

import soxr
import torch
from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.streaming import AudioError

_MIN_RATE, _MAX_RATE = 1000, 768_000


class StreamingResampler:
    """Resample a stream with libsoxr; the result does not depend on the sizes of the blocks.

    Delays by up to 40 ms from 44.1 and 48 kHz, and up to 120 ms from 8 kHz.

    Args:
      from_rate: Input sample rate in Hz.
      to_rate: Output sample rate in Hz.

    Raises:
      AudioError: The input sample rate is out of range.
    """

    def __init__(self, from_rate: int, to_rate: int) -> None:
        check_sample_rate(from_rate)
        self._stream = None
        if from_rate != to_rate:
            self._stream = soxr.ResampleStream(from_rate, to_rate, num_channels=1, dtype="float32")

    def accept(self, samples: Tensor) -> Tensor:
        """Append input samples (n,), and return the output samples (m,) that are complete."""
        return samples if self._stream is None else self._resample(self._stream, samples, last=False)

    def flush(self) -> Tensor:
        """Return the last output samples (m,) of a finished stream."""
        return torch.zeros(0) if self._stream is None else self._resample(self._stream, torch.zeros(0), last=True)

    @staticmethod
    def _resample(stream: soxr.ResampleStream, samples: Tensor, last: bool) -> Tensor:
        return torch.from_numpy(stream.resample_chunk(samples.numpy(), last))


def narrowband_note(sample_rate: int, covers_narrowband: bool = False) -> str | None:
    """Return a remark about audio whose sample rate is below that of the model; None if there is nothing to remark.

    Args:
      sample_rate: Sample rate of the audio in Hz.
      covers_narrowband: The model was also trained on narrowband audio.
    """
    if sample_rate >= SAMPLE_RATE or covers_narrowband:
        return None
    return (
        f"a sample rate of {sample_rate} Hz, below the {SAMPLE_RATE} Hz of the model: frequencies above "
        f"{sample_rate // 2} Hz are missing; expect more errors: train the model with --narrowband-perturb, or record "
        f"at {SAMPLE_RATE} Hz or more"
    )


def check_sample_rate(sample_rate: int) -> None:
    """Check that a sample rate is plausible.

    Raises:
      AudioError: It is out of range.
    """
    if not _MIN_RATE <= sample_rate <= _MAX_RATE:
        raise AudioError(
            f"a sample rate of {sample_rate} Hz: expected {_MIN_RATE} to {_MAX_RATE}; check the given sample rate "
            "(--sample-rate) or the header of the audio"
        )
