"""Audio of clients, converted to 16 kHz mono: PCM in messages of any size, and containers as a pipe to FFmpeg."""

import asyncio
import io
import queue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.streaming import check_samples
from icefall_pathways.serve.protocol import AudioFormat
from icefall_pathways.transcription.resampling import StreamingResampler

_MIN_BLOCK_SECONDS = 0.01
_MAX_PENDING_BYTES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"pcm_s16le": np.dtype("<i2"), "pcm_f32le": np.dtype("<f4")}


class PcmDecoder:
    """Convert PCM in messages of any size, which may split samples.

    Short messages are joined to blocks, since each block has a cost. Unless their rate changes, 16-bit samples stay as
    they are, since they take half of the memory of floats; see `as_float`.

    Args:
      audio_format: Encoding of the samples.
      sample_rate: Sample rate in Hz.

    Raises:
      AudioError: The sample rate is out of range.
    """

    def __init__(self, audio_format: AudioFormat, sample_rate: int) -> None:
        self._dtype = _DTYPES[audio_format]
        self._resampler = StreamingResampler(sample_rate, SAMPLE_RATE)
        self._keeps_integers = sample_rate == SAMPLE_RATE and self._dtype.kind == "i"
        self._min_bytes = max(1, int(_MIN_BLOCK_SECONDS * sample_rate)) * self._dtype.itemsize
        self._pending = bytearray()

    def accept(self, data: bytes) -> Tensor:
        """Append bytes, and return samples (n,) at 16 kHz, int16 or float32; none if the block is still too short.

        Raises:
          AudioError: The samples are not finite or out of range.
        """
        self._pending += data
        if len(self._pending) < self._min_bytes:
            return torch.zeros(0)
        return self._take()

    def flush(self) -> Tensor:
        """Return the last samples (n,), as `accept`; an incomplete one is dropped.

        Raises:
          AudioError: The samples are not finite or out of range.
        """
        samples, last = self._take(), self._resampler.flush()
        return torch.cat([samples, last]) if last.numel() > 0 else samples

    def _take(self) -> Tensor:
        count = len(self._pending) // self._dtype.itemsize
        values = np.frombuffer(bytes(self._pending), self._dtype, count)
        samples = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
        del self._pending[: count * self._dtype.itemsize]
        if self._keeps_integers:
            return samples
        samples = as_float(samples)
        check_samples(samples)  # before the resampler, whose buffer would keep a NaN
        return self._resampler.accept(samples)


def as_float(samples: Tensor) -> Tensor:
    """Return samples (n,) as float32 in [-1, 1]."""
    return samples if samples.is_floating_point() else samples.to(torch.float32) / 2**15


class Pipe(io.RawIOBase):
    """Bytes that the event loop writes and a thread reads, as a binary file without seeking."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._num_pending = 0
        self._space = asyncio.Event()
        self._rest = b""
        self._ended = False

    async def put(self, data: bytes) -> None:
        """Append bytes, after waiting for space."""
        while self._num_pending > _MAX_PENDING_BYTES:
            self._space.clear()
            await self._space.wait()
        self._num_pending += len(data)
        if data:
            self._blocks.put(data)

    def end(self) -> None:
        """End the file after the bytes so far."""
        self._num_pending = 0
        self._space.set()
        self._blocks.put(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read up to the size of the buffer, after waiting for the first byte; 0 at the end."""
        while not self._rest and not self._ended:
            self._rest = self._blocks.get()
            self._ended = not self._rest
            self._loop.call_soon_threadsafe(self._release, len(self._rest))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _release(self, num_bytes: int) -> None:
        self._num_pending -= num_bytes
        self._space.set()
