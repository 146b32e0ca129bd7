"""A scorer of voice activity detection for tests, in place of Silero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icefall_pathways.decoding.streaming.voice_activity import Scores


@dataclass
class WindowScorer:
    """Score each window on its own by a function."""

    function: Callable[[NDArray[np.float32]], float]

    def new_state(self) -> None:
        """Return the state of a new stream: none."""

    def score(self, windows: Sequence[NDArray[np.float32]], states: Sequence[None]) -> list[Scores]:
        """Score the windows (n, 512) of each stream."""
        values = [[self.function(window) for window in stream] for stream in windows]
        return [Scores(np.array(stream, np.float32), state) for stream, state in zip(values, states, strict=True)]
