"""PCM samples: raw, or after a WAV header, which can be read from a pipe."""

import struct
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

from icefall_pathways.decoding.streaming import AudioError

_MIN_RATE, _MAX_RATE = 1000, 768_000
_UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # written by programs that cannot seek back to the header
_INTEGERS, _FLOATS, _EXTENSIBLE = 1, 3, 0xFFFE
_TYPES = {(_INTEGERS, 16): "<i2", (_INTEGERS, 32): "<i4", (_FLOATS, 32): "<f4", (_FLOATS, 64): "<f8"}


@dataclass(frozen=True)
class PcmFormat:
    """Encoding of PCM samples.

    Attributes:
      sample_rate: Sample rate in Hz.
      channels: Number of interleaved channels.
      bits: Bits per sample.
      kind: WAV format tag: 1 for integers, 3 for floating point.

    Raises:
      AudioError: The encoding is not supported, or the sample rate is out of range.
    """

    sample_rate: int
    channels: int = 1
    bits: int = 16
    kind: int = _INTEGERS

    def __post_init__(self) -> None:
        check_sample_rate(self.sample_rate)
        if self.channels < 1 or (
            (self.kind, self.bits) not in _TYPES and (self.kind, self.bits) not in ((1, 8), (1, 24))
        ):
            raise AudioError(
                f"a WAV stream of {self.channels} channels, format {self.kind}, {self.bits} bits: expected PCM of 8, "
                "16, 24 or 32 bits, or floating point of 32 or 64 bits; convert it, for example with ffmpeg"
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes per frame: one sample of each channel."""
        return self.channels * self.bits // 8

    def decode(self, data: bytes) -> Tensor:
        """Decode whole frames to samples (n,), channels averaged; integers are scaled to [-1, 1]."""
        if (self.kind, self.bits) == (_INTEGERS, 8):
            samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
        elif (self.kind, self.bits) == (_INTEGERS, 24):
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            samples = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
        else:
            samples = np.frombuffer(data, _TYPES[self.kind, self.bits]).astype(np.float32)
            if self.kind == _INTEGERS:
                samples = samples / 2.0 ** (self.bits - 1)
        return torch.from_numpy(samples.reshape(-1, self.channels).mean(axis=1))


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


def read_wav_header(stream: IO[bytes]) -> tuple[PcmFormat, int | None]:
    """Read the header of a WAV stream, from after its "RIFF" up to the first sample.

    Returns:
      Encoding of the samples, and their declared length in bytes; None if it is unknown.

    Raises:
      AudioError: It is not a WAV stream, or it ends in its header.
    """
    if _read_exactly(stream, 8)[4:] != b"WAVE":
        raise AudioError("a RIFF stream that is not WAV: expected audio")
    pcm = None
    while True:
        name, size = struct.unpack("<4sI", _read_exactly(stream, 8))
        if name == b"data":
            if pcm is None:
                raise AudioError("a WAV stream whose samples precede their format: convert it, for example with ffmpeg")
            return pcm, None if size in _UNKNOWN_LENGTHS else size
        content = _read_exactly(stream, size + size % 2)
        if name == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if kind == _EXTENSIBLE and len(content) >= 26:
                (kind,) = struct.unpack("<H", content[24:26])
            pcm = PcmFormat(rate, channels, bits, kind)


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise AudioError("the audio ends in its header")
        data += more
    return data
