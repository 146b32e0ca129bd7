"""Conversion of multi-channel audio to mono: the average of the channels that carry the signal."""

import numpy as np
from numpy.typing import NDArray

from icefall_pathways.decoding.streaming import AudioError

_FRAME_SECONDS = 0.1  # the weights of the channels change between frames
_RAMP_SECONDS = 0.01  # duration of such a change
_MIN_RELATIVE_ENERGY = 0.01  # of an active channel, relative to the loudest one: -20 dB
_MIN_INVERTED_CORRELATION = -0.5


class Downmixer:
    """Average the active channels of a stream.

    Channels are active if their energy so far is at most 20 dB below that of the loudest one: averaging silent
    channels, such as the unused ones of a sound card, would attenuate speech. Active channels whose phase is inverted
    are inverted, because they would cancel the others. The result does not depend on the sizes of the blocks.

    Args:
      num_channels: Number of channels.
      sample_rate: Sample rate in Hz.
      channel: Use this channel alone, counted from 0; None: the active ones.

    Raises:
      AudioError: There is no such channel.
    """

    def __init__(self, num_channels: int, sample_rate: int, channel: int | None = None) -> None:
        if channel is not None and not 0 <= channel < num_channels:
            expected = "only channel 0" if num_channels == 1 else f"channels 0 to {num_channels - 1}"
            raise AudioError(f"channel {channel} does not exist: the audio has {expected}; change --channel")
        self._channel = 0 if num_channels == 1 else channel
        self._frame_length = max(1, int(_FRAME_SECONDS * sample_rate))
        self._ramp = np.linspace(0, 1, max(1, int(_RAMP_SECONDS * sample_rate)), dtype=np.float32)[:, None]
        self._buffer = np.zeros((0, num_channels), np.float32)
        self._covariance = np.zeros((num_channels, num_channels))
        self.weights = np.full(num_channels, 1 / num_channels, np.float32)

    def accept(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append samples (n, C), and return the mono samples (m,) of the complete frames."""
        if self._channel is not None:
            return np.ascontiguousarray(samples[:, self._channel])
        self._buffer = np.concatenate([self._buffer, samples])
        complete = len(self._buffer) // self._frame_length * self._frame_length
        frames, self._buffer = self._buffer[:complete], self._buffer[complete:]
        mixed = [self._mix(frame) for frame in frames.reshape(-1, self._frame_length, frames.shape[1])]
        return np.concatenate(mixed) if mixed else np.zeros(0, np.float32)

    def flush(self) -> NDArray[np.float32]:
        """Return the last mono samples (m,) of a finished stream."""
        frame, self._buffer = self._buffer, self._buffer[:0]
        return self._mix(frame) if len(frame) else np.zeros(0, np.float32)

    def describe(self) -> str | None:
        """Describe the channels used, such as "transcribed channel 0 of 2 (...)"; None if all are averaged."""
        used = np.flatnonzero(self.weights)
        if self._channel is not None or (len(used) == len(self.weights) and (self.weights > 0).all()):
            return None
        numbers = ", ".join(map(str, used[:8])) + (", ..." if len(used) > 8 else "")
        reasons = ["the others are silent or at least 20 dB quieter"] if len(used) < len(self.weights) else []
        if inverted := np.flatnonzero(self.weights < 0).tolist():
            reasons.append(f"the phase of {', '.join(map(str, inverted))} is inverted")
        name = "channel" if len(used) == 1 else "channels"
        return f"transcribed {name} {numbers} of {len(self.weights)} ({'; '.join(reasons)})"

    def _mix(self, frame: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mono samples (n,) of a frame (n, C)."""
        previous, was_silent = self.weights, not self._covariance.any()
        self._update(frame)
        mono = frame @ self.weights
        if not was_silent and (self.weights != previous).any():
            ramp = self._ramp[: len(frame)]
            mono[: len(ramp)] = (frame[: len(ramp)] * (previous + ramp * (self.weights - previous))).sum(axis=1)
        return mono

    def _update(self, frame: NDArray[np.float32]) -> None:
        with np.errstate(all="ignore"):  # NaN and infinity, which the decoder reports
            centered = frame - frame.mean(axis=0)  # sound cards may add an offset
            self._covariance += centered.T.astype(np.float64) @ centered
        energy = self._covariance.diagonal()
        loudest = int(energy.argmax())
        if not 0 < energy[loudest] < np.inf:  # silence, NaN or infinity
            return
        active = energy >= _MIN_RELATIVE_ENERGY * energy[loudest]
        inverted = self._covariance[loudest] < _MIN_INVERTED_CORRELATION * np.sqrt(energy * energy[loudest])
        signs = np.where(inverted, -1, 1) * active
        signs = signs * signs[active.argmax()]  # the first active channel keeps its phase
        self.weights = (signs / active.sum()).astype(np.float32)
