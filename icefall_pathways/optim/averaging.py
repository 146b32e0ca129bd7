"""Running averages of model weights during training."""

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]


class ModelAverage:
    """Running mean of a model's weights during training, in float64.

    Every `period` updates: average <- average * (1 - period / n) + model * period / n, after n updates in total. The
    average of an entry that no active sub-network trains is its constant value.

    Args:
      model: The model at the start of training.
      period: Number of updates between two samples of the weights.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        self._period = period
        self._state = {name: _to_float64(value) for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, update: int) -> None:
        """Add the weights after `update` updates to the average, if `update` is a multiple of the period."""
        if last_sample(update, self._period) != update:
            return
        share = self._period / update
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self._state[name].lerp_(value.double(), share)
            else:
                self._state[name].copy_(value)

    def state_dict(self) -> StateDict:
        """Return the average, with the model's parameter and buffer names."""
        return self._state

    def load_state_dict(self, state: StateDict) -> None:
        """Restore an average from a checkpoint."""
        for name, value in state.items():
            self._state[name].copy_(value)


def last_sample(update: int, period: int) -> int:
    """Return the last update up to `update` whose weights are in the average; 0: none, it has the initial weights."""
    return update - update % period


def average_range(start: StateDict, end: StateDict, num_start: int, num_end: int) -> StateDict:
    """Return the mean of the weights over the updates from `num_start` (exclusive) to `num_end`.

    Args:
      start: The running mean at `num_start`.
      end: The running mean at `num_end`.
      num_start: Number of updates before the range; the last sample of `start`.
      num_end: Number of updates at the end of the range; the last sample of `end`.

    Raises:
      ValueError: `num_end` is not after `num_start`.
    """
    if num_end <= num_start:
        raise ValueError(f"cannot average from update {num_start} to {num_end}: the end must come after the start")
    share = num_end / (num_end - num_start)
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def _to_float64(value: Tensor) -> Tensor:
    return value.detach().to(torch.float64 if value.is_floating_point() else value.dtype, copy=True)
