"""States of the encoder and the search for streams that share batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakSet

from torch import Tensor

from icefall_pathways.models.transducer import Transducer
from icefall_pathways.searches import SearchState


@dataclass(frozen=True, eq=False)  # hashable by identity
class BatchState:
    """State of the streams of one batch, in their order.

    It is split into the states of single streams only if the next batch has other streams or another order.

    Attributes:
      model: The model that the states belong to.
      encoder_states: Encoder state of the batch.
      search_state: Search state of the batch.
      size: Number of streams.
      streams: States of the streams whose last batch this is.
    """

    model: Transducer
    encoder_states: list[Tensor]
    search_state: SearchState
    size: int
    streams: "WeakSet[StreamState]" = field(default_factory=WeakSet)

    @cached_property
    def encoder_states_by_stream(self) -> list[list[Tensor]]:
        """Encoder state of each stream, as a batch of one."""
        return [self.encoder_states] if self.size == 1 else self.model.unstack_states(self.encoder_states)

    @cached_property
    def search_states_by_stream(self) -> Sequence[SearchState]:
        """Search state of each stream, as a batch of one."""
        return [self.search_state] if self.size == 1 else self.search_state.split()


@dataclass(eq=False)
class StreamState:
    """State of one stream: a row of a batch.

    Attributes:
      batch: State of the batch in which the stream was processed last.
      row: Index of the stream in the batch.
    """

    batch: BatchState
    row: int

    def __post_init__(self) -> None:
        self.batch.streams.add(self)

    @property
    def encoder_states(self) -> list[Tensor]:
        """Encoder state, as a batch of one."""
        return self.batch.encoder_states_by_stream[self.row]

    @property
    def search_state(self) -> SearchState:
        """Search state, as a batch of one."""
        return self.batch.search_states_by_stream[self.row]

    def leave_batch(self) -> None:
        """Copy the state of this stream, so that it does not keep the states of the others in memory."""
        model = self.batch.model
        encoder_states, search_state = model.stack_states([self.encoder_states]), SearchState.join([self.search_state])
        self.batch, self.row = BatchState(model, encoder_states, search_state, 1), 0


def join_states(states: Sequence[StreamState]) -> tuple[list[Tensor], SearchState]:
    """Return the encoder states and the search states of the streams as one batch, in the given order.

    Other streams of their last batches get copies of their states, so that these batches can be freed.
    """
    batch = _common_batch(states)
    if batch is not None:
        return batch.encoder_states, batch.search_state
    joined = set(states)
    for batch in {state.batch for state in states}:
        for state in set(batch.streams) - joined:
            state.leave_batch()
    return states[0].batch.model.stack_states([state.encoder_states for state in states]), join_search_states(states)


def join_search_states(states: Sequence[StreamState]) -> SearchState:
    """Return the search states of the streams as one batch, in the given order."""
    batch = _common_batch(states)
    if batch is not None:
        return batch.search_state
    return SearchState.join([state.search_state for state in states])


def _common_batch(states: Sequence[StreamState]) -> BatchState | None:
    """Return the batch whose rows, all and in order, are `states`; None if there is none."""
    batch = states[0].batch
    if len(states) != batch.size:
        return None
    is_whole_batch = all(state.batch is batch and state.row == row for row, state in enumerate(states))
    return batch if is_whole_batch else None
