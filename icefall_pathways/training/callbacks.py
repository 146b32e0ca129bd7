"""Hooks into the training loop."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from icefall_pathways.data.batch import Batch
from icefall_pathways.training.train_state import TrainState

#: Validation metrics by language and name.
ValidationMetrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class UpdateResult:
    """The result of one update on this rank.

    Attributes:
      batches: The batches of this rank, all of one language.
      losses: The losses of each batch by name, summed over its tokens, 0-dim and detached.
      grad_norm: Norm of the gradient, 0-dim, the same on all ranks.
      stepped: Whether the optimizer stepped; it does not after a non-finite loss or gradient.
      stop_signal: The signal that requested a stop of this or another rank; 0: no request.
    """

    batches: Sequence[Batch]
    losses: Sequence[Mapping[str, Tensor]]
    grad_norm: Tensor
    stepped: bool
    stop_signal: int = 0

    @property
    def language(self) -> str:
        """The language of the batches."""
        return self.batches[0].language


class Callback:
    """Observer or extension of the training loop; the hooks of this base class do nothing.

    All ranks call the hooks at the same points, in the order of the list of callbacks.
    """

    def on_train_start(self, state: TrainState) -> None:
        """Run before the first update, after a checkpoint has been restored."""

    def on_update_start(self, state: TrainState, batches: Sequence[Batch], wait_seconds: float) -> None:
        """Run before an update on `batches`, for which the loop waited `wait_seconds`."""

    def on_backward_end(self, state: TrainState) -> None:
        """Run after the backward pass of the last batch of an update, before the optimizer step."""

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """Run after an update."""

    def on_validation_end(self, state: TrainState, metrics: ValidationMetrics) -> None:
        """Run after a validation."""

    def on_train_end(self, state: TrainState, error: BaseException | None) -> None:
        """Run at the end of training; `error` is the exception that stopped it, if any."""


class CallbackList(list[Callback]):
    """A list of callbacks; its hooks call the hook of each element in order."""

    def on_update_start(self, state: TrainState, batches: Sequence[Batch], wait_seconds: float) -> None:
        """See `Callback`."""
        for callback in self:
            callback.on_update_start(state, batches, wait_seconds)

    def on_backward_end(self, state: TrainState) -> None:
        """See `Callback`."""
        for callback in self:
            callback.on_backward_end(state)

    def on_update_end(self, state: TrainState, result: UpdateResult) -> None:
        """See `Callback`."""
        for callback in self:
            callback.on_update_end(state, result)

    def on_validation_end(self, state: TrainState, metrics: ValidationMetrics) -> None:
        """See `Callback`."""
        for callback in self:
            callback.on_validation_end(state, metrics)

    @contextmanager
    def training(self, state: TrainState) -> Iterator[None]:
        """Call `on_train_start` on entry, and `on_train_end` on exit with the exception that is raised, if any."""
        try:
            for callback in self:
                callback.on_train_start(state)
            yield
        except BaseException as error:
            for callback in self:
                callback.on_train_end(state, error)
            raise
        for callback in self:
            callback.on_train_end(state, None)
