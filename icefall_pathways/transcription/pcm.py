"""Samples as plain numbers: raw, or behind a WAV header that comes through a pipe."""

import struct
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

from icefall_pathways.decoding.streaming import AudioError

_LOWEST_RATE, _HIGHEST_RATE = 1000, 768_000
_UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # what programs write that cannot go back to the header
_INTEGERS, _FLOATS, _EXTENSIBLE = 1, 3, 0xFFFE
_TYPES = {(_INTEGERS, 16): "<i2", (_INTEGERS, 32): "<i4", (_FLOATS, 32): "<f4", (_FLOATS, 64): "<f8"}


@dataclass(frozen=True)
class PcmFormat:
    """How samples are written.

    Attributes:
      sample_rate: In Hz.
      channels: Samples of each moment, one after the other.
      bits: Of a sample.
      kind: 1 for integers, 3 for floating point numbers.
    """

    sample_rate: int
    channels: int = 1
    bits: int = 16
    kind: int = _INTEGERS

    def __post_init__(self) -> None:
        if not _LOWEST_RATE <= self.sample_rate <= _HIGHEST_RATE:
            raise AudioError(
                f"a sample rate of {self.sample_rate} Hz: expected {_LOWEST_RATE} to {_HIGHEST_RATE}; is the header "
                "damaged, or --sample-rate wrong?"
            )
        if self.channels < 1 or (
            (self.kind, self.bits) not in _TYPES and (self.kind, self.bits) not in ((1, 8), (1, 24))
        ):
            raise AudioError(
                f"a WAV stream of {self.channels} channels, samples of kind {self.kind} and {self.bits} bits: expected "
                "PCM of 8, 16, 24 or 32 bits, or floating point of 32 or 64; convert it, for instance by ffmpeg"
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one moment."""
        return self.channels * self.bits // 8

    def decode(self, data: bytes) -> Tensor:
        """Whole frames as samples (n,), channels mixed to one; integers are scaled to [-1, 1]."""
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


def read_wav_header(stream: IO[bytes]) -> tuple[PcmFormat, int | None]:
    """Read a stream up to where its samples begin, "RIFF" having been read already.

    Returns:
      How samples are written, and how many bytes of them are announced; None where that was not known.

    Raises:
      AudioError: It is no WAV stream, or it ends too early.
    """
    if _exactly(stream, 8)[4:] != b"WAVE":
        raise AudioError("a RIFF stream that is not WAV: expected audio")
    found = None
    while True:
        name, size = struct.unpack("<4sI", _exactly(stream, 8))
        if name == b"data":
            if found is None:
                raise AudioError(
                    "a WAV stream whose samples come before their format: convert it, for instance by ffmpeg"
                )
            return found, None if size in _UNKNOWN_LENGTHS else size
        content = _exactly(stream, size + size % 2)
        if name == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if kind == _EXTENSIBLE and len(content) >= 26:
                (kind,) = struct.unpack("<H", content[24:26])
            found = PcmFormat(rate, channels, bits, kind)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise AudioError("the audio ends within its header")
        data += more
    return data
