"""Prometheus metrics of the server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.open_streams = Gauge("pathways_open_streams", "Open streams", ["protocol"], registry=registry)
        self.streams = Counter("pathways_streams", "Streams that ended", ["protocol", "outcome"], registry=registry)
        self.refused = Counter("pathways_refused", "Refused streams and requests", ["reason"], registry=registry)
        self.segments = Counter("pathways_segments", "Final results", ["language"], registry=registry)
        self.audio_seconds = Counter(
            "pathways_audio_seconds", "Seconds of audio decoded", ["protocol"], registry=registry
        )
        self.batch_seconds = Histogram(
            "pathways_batch_seconds", "Duration of a batch of chunks", buckets=_SECONDS, registry=registry
        )
        self.batch_streams = Histogram(
            "pathways_batch_streams", "Streams in a batch of chunks", buckets=_SIZES, registry=registry
        )
        self.reloads = Counter("pathways_reloads", "Reloads of the model", ["outcome"], registry=registry)
        self.load = Gauge(
            "pathways_load", "Duration of recent batches divided by the duration of a chunk", registry=registry
        )

    def format(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
