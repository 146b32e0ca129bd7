"""Learning rates as functions of the position in the training; they hold no state, so resuming needs none."""

from dataclasses import dataclass
from typing import Protocol


class LearningRate(Protocol):
    """A learning rate schedule."""

    def __call__(self, update: int, epoch: int) -> float:
        """The learning rate of update `update` (from 1), after `epoch` finished epochs."""


@dataclass(frozen=True)
class Eden:
    """Icefall's schedule: falls with the fourth root of the square of updates and of epochs.

    lr = base * ((n^2 + A^2) / A^2)^(-1/4) * ((e^2 + E^2) / E^2)^(-1/4) * warm-up,
    with n the update, e the finished epochs, and a linear warm-up from `warmup_start`.

    Attributes:
      base: Base learning rate.
      lr_batches: A, in updates.
      lr_epochs: E, in epochs.
      warmup: Updates of warm-up.
      warmup_start: Factor at the start of the warm-up.
    """

    base: float
    lr_batches: float
    lr_epochs: float
    warmup: int = 500
    warmup_start: float = 0.1

    def __call__(self, update: int, epoch: int) -> float:
        """See `LearningRate`."""
        decay = ((update / self.lr_batches) ** 2 + 1) ** -0.25 * ((epoch / self.lr_epochs) ** 2 + 1) ** -0.25
        return self.base * decay * _warm(update, self.warmup, self.warmup_start)


@dataclass(frozen=True)
class LinearDecay:
    """Linear warm-up, then linear decay to zero just after the last update: for runs of known, small length.

    Attributes:
      base: The highest learning rate.
      num_updates: Updates of the whole run.
      warmup: Updates of warm-up.
    """

    base: float
    num_updates: int
    warmup: int = 0

    def __call__(self, update: int, epoch: int) -> float:
        """See `LearningRate`."""
        remaining = (self.num_updates - update + 1) / max(1, self.num_updates - self.warmup)
        return self.base * max(0.0, min(1.0, remaining)) * _warm(update, self.warmup, 0.0)


def _warm(update: int, warmup: int, start: float) -> float:
    return 1.0 if update >= warmup else start + (1 - start) * update / warmup
