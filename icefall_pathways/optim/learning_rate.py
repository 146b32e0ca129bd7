"""Learning rate schedules: functions of update and epoch, without state in checkpoints."""

from dataclasses import dataclass
from typing import Protocol


class LearningRate(Protocol):
    """A learning rate schedule."""

    def __call__(self, update: int, epoch: int) -> float:
        """Return the learning rate of update `update` (from 1), after `epoch` finished epochs."""


@dataclass(frozen=True)
class Eden:
    """Eden, icefall's schedule, which decays with both updates and epochs.

    lr = base * ((n^2 + A^2) / A^2)^(-1/4) * ((e^2 + E^2) / E^2)^(-1/4) * warm-up,
    with n the update, e the finished epochs, and a warm-up factor that rises linearly from `warmup_start` to 1.

    Attributes:
      base: Base learning rate.
      lr_batches: A, in updates.
      lr_epochs: E, in epochs.
      warmup: Number of warm-up updates.
      warmup_start: Factor at the start of the warm-up.
    """

    base: float
    lr_batches: float
    lr_epochs: float
    warmup: int = 500
    warmup_start: float = 0.1

    def __call__(self, update: int, epoch: int) -> float:
        """Return the learning rate; see `LearningRate`."""
        decay = ((update / self.lr_batches) ** 2 + 1) ** -0.25 * ((epoch / self.lr_epochs) ** 2 + 1) ** -0.25
        return self.base * decay * _warmup_factor(update, self.warmup, self.warmup_start)


@dataclass(frozen=True)
class LinearDecay:
    """Linear warm-up, then linear decay to zero just after the last update, for short runs of known length.

    Attributes:
      base: Maximum of the learning rate.
      num_updates: Number of updates of the run.
      warmup: Number of warm-up updates.
    """

    base: float
    num_updates: int
    warmup: int = 0

    def __call__(self, update: int, epoch: int) -> float:
        """Return the learning rate; see `LearningRate`."""
        remaining = (self.num_updates - update + 1) / max(1, self.num_updates - self.warmup)
        return self.base * max(0.0, min(1.0, remaining)) * _warmup_factor(update, self.warmup, 0.0)


def _warmup_factor(update: int, warmup: int, start: float) -> float:
    return 1.0 if update >= warmup else start + (1 - start) * update / warmup
