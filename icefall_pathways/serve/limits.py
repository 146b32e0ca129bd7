"""Limits of the server: how much one client, and all clients together, may use."""

from dataclasses import dataclass
from typing import Annotated

from icefall_pathways.ranges import Options, PositiveFloat, PositiveInt, Range

_MAX_FRAME_BYTES = 2**31


@dataclass(frozen=True)
class Limits(Options):
    """Limits of the server. Requests above a limit are refused, and streams are ended, with a message that names it."""

    max_streams: PositiveInt = 256
    """Open streams, over all protocols; further ones are refused (HTTP 503, websocket code 1013)."""

    max_containers: PositiveInt = 32
    """Streams and files at once that FFmpeg decodes, such as WebM, Ogg or MP3; each uses a thread."""

    max_message_bytes: Annotated[int, Range(1024, _MAX_FRAME_BYTES)] = 1 << 20
    """Size of a websocket message in bytes."""

    max_upload_mb: PositiveFloat = 100.0
    """Size of an uploaded file in megabytes."""

    max_stream_mb: PositiveFloat = 4000.0
    """Bytes that a stream may send, in megabytes."""

    max_stream_seconds: PositiveFloat = 14400.0
    """Duration of the audio of a stream or file in seconds."""

    max_buffer_seconds: PositiveFloat = 5.0
    """Seconds of audio buffered per stream, apart from the next chunk; when they are full, the server stops reading
    from the client."""

    max_hotwords: int = 200
    """Hotwords per stream; 0: none."""

    max_load: Annotated[float, Range(0, open_minimum=True)] = 0.7
    """Refuse new streams if a batch takes, or with another stream is expected to take, longer than this share of the
    duration of a chunk: the open streams keep their latency."""

    idle_timeout: PositiveFloat = 60.0
    """Seconds without a message from the client after which its stream is ended, or, if it does not read the results,
    dropped. A connection is closed if the head of an HTTP request, or the next part of its body, takes longer, or if
    its client reads nothing of a response for that time."""

    upload_timeout: PositiveFloat = 1800.0
    """Seconds in which the body of an HTTP request has to arrive; later ones are refused (HTTP 408)."""

    drain_timeout: PositiveFloat = 30.0
    """Seconds that open streams have to receive their final results after SIGTERM."""
