"""What a model and its search remember of streams that share batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from icefall_pathways.models.transducer import Transducer
from icefall_pathways.searches import SearchState


@dataclass(frozen=True)
class BatchState:
    """Of the streams of one batch, in their order.

    It is taken apart only when the streams do not meet in the same batch again.

    Attributes:
      model: Whose states they are.
      encoder_states: The encoder's state.
      search_state: The search's hypotheses.
      size: Streams.
    """

    model: Transducer
    encoder_states: list[Tensor]
    search_state: SearchState
    size: int

    @cached_property
    def encoder_states_by_stream(self) -> list[list[Tensor]]:
        """The encoder's memory of each stream, as a batch of one."""
        return [self.encoder_states] if self.size == 1 else self.model.unstack_states(self.encoder_states)

    @cached_property
    def search_states_by_stream(self) -> Sequence[SearchState]:
        """The hypotheses of each stream, as a batch of one."""
        return [self.search_state] if self.size == 1 else self.search_state.split()


@dataclass(frozen=True)
class StreamState:
    """Of one stream: the place `row` in a batch.

    Attributes:
      batch: With the streams that it was last read with.
      row: Its place.
    """

    batch: BatchState
    row: int

    @property
    def encoder_states(self) -> list[Tensor]:
        """The encoder's memory, as a batch of one."""
        return self.batch.encoder_states_by_stream[self.row]

    @property
    def search_state(self) -> SearchState:
        """The hypotheses, as a batch of one."""
        return self.batch.search_states_by_stream[self.row]


def join_encoder_states(states: Sequence[StreamState]) -> list[Tensor]:
    """The encoder's memory of all, as one batch in the given order."""
    batch = _common_batch(states)
    if batch is not None:
        return batch.encoder_states
    return states[0].batch.model.stack_states([state.encoder_states for state in states])


def join_search_states(states: Sequence[StreamState]) -> SearchState:
    """The hypotheses of all, as one batch in the given order."""
    batch = _common_batch(states)
    if batch is not None:
        return batch.search_state
    return SearchState.join([state.search_state for state in states])


def _common_batch(states: Sequence[StreamState]) -> BatchState | None:
    """The batch of which these are all rows in their order; None if there is none."""
    batch = states[0].batch
    if len(states) != batch.size:
        return None
    together = all(state.batch is batch and state.row == row for row, state in enumerate(states))
    return batch if together else None
