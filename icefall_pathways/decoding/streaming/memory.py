"""What a model and its search remember of streams that share batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from icefall_pathways.models.transducer import Transducer
from icefall_pathways.searches import SearchState


@dataclass(frozen=True)
class BatchMemory:
    """Of the streams of one batch, in their order.

    It is taken apart only when the streams do not meet in the same batch again.

    Attributes:
      model: Whose states they are.
      encoder_states: The encoder's memory.
      search_state: The search's hypotheses.
      size: Streams.
    """

    model: Transducer
    encoder_states: list[Tensor]
    search_state: SearchState
    size: int

    @cached_property
    def each_encoder(self) -> list[list[Tensor]]:
        """The encoder's memory of each stream, as a batch of one."""
        return [self.encoder_states] if self.size == 1 else self.model.unstack_states(self.encoder_states)

    @cached_property
    def each_search(self) -> Sequence[SearchState]:
        """The hypotheses of each stream, as a batch of one."""
        return [self.search_state] if self.size == 1 else self.search_state.split()


@dataclass(frozen=True)
class Memory:
    """Of one stream: the place `row` in a batch.

    Attributes:
      batch: With the streams that it was last read with.
      row: Its place.
    """

    batch: BatchMemory
    row: int

    @property
    def encoder_states(self) -> list[Tensor]:
        """The encoder's memory, as a batch of one."""
        return self.batch.each_encoder[self.row]

    @property
    def search_state(self) -> SearchState:
        """The hypotheses, as a batch of one."""
        return self.batch.each_search[self.row]


def join_encoder(memories: Sequence[Memory]) -> list[Tensor]:
    """The encoder's memory of all, as one batch in the given order."""
    batch = _common_batch(memories)
    if batch is not None:
        return batch.encoder_states
    return memories[0].batch.model.stack_states([memory.encoder_states for memory in memories])


def join_search(memories: Sequence[Memory]) -> SearchState:
    """The hypotheses of all, as one batch in the given order."""
    batch = _common_batch(memories)
    if batch is not None:
        return batch.search_state
    return SearchState.join([memory.search_state for memory in memories])


def _common_batch(memories: Sequence[Memory]) -> BatchMemory | None:
    """The batch of which these are all rows in their order; None if there is none."""
    batch = memories[0].batch
    if len(memories) != batch.size:
        return None
    together = all(memory.batch is batch and memory.row == row for row, memory in enumerate(memories))
    return batch if together else None
