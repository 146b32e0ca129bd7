"""Prediction of the load: the duration of a batch as a function of its number of streams."""

import threading

_DECAY = 0.98  # of the weights of earlier batches, per batch
_MIN_STD = 0.5  # smallest standard deviation of the numbers of streams from which the slope is estimated
_MAX_SLOPE = 0.7  # relative to the average per stream: larger batches are more efficient


class BatchCost:
    """Linear model of the duration of a batch, `fixed + per_stream * num_streams`, fitted to recent batches.

    Small batches cost more per stream than large ones: the ratio of duration and streams would overestimate the load of
    more streams. The methods may be called on different threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weight = self._mean_streams = self._mean_seconds = self._variance = self._covariance = 0.0

    def add(self, num_streams: int, seconds: float) -> None:
        """Add a batch."""
        with self._lock:
            self._weight = _DECAY * self._weight + 1
            share = 1 / self._weight
            streams, duration = num_streams - self._mean_streams, seconds - self._mean_seconds
            self._mean_streams += share * streams
            self._mean_seconds += share * duration
            self._variance = (1 - share) * (self._variance + share * streams**2)
            self._covariance = (1 - share) * (self._covariance + share * streams * duration)

    def predict(self, num_streams: int) -> float:
        """Return the expected seconds of a batch; 0 before the first one."""
        with self._lock:
            if self._weight == 0:
                return 0.0
            average = self._mean_seconds / self._mean_streams
            per_stream = _MAX_SLOPE * average
            if self._variance >= _MIN_STD**2:
                per_stream = min(max(0.0, self._covariance / self._variance), per_stream)
            return self._mean_seconds + per_stream * (num_streams - self._mean_streams)
