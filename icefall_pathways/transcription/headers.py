"""Facts that the headers of containers state, and that FFmpeg does not report.

FFmpeg reads truncated files of these formats without an error: WAV, RF64, W64 and CAF state the size of the samples,
Ogg marks its last page, and MP3 files may start with the number of frames.
"""

import struct
from typing import NamedTuple

_MAX_OGG_PAGE = 65307  # bytes
TAIL_BYTES = 2 * _MAX_OGG_PAGE
HEAD_BYTES = 1 << 20  # headers with pictures or long comments

_OGG_HEADER, _OGG_END_OF_STREAM = 27, 4
_XING_HAS_FRAMES = 1
_WAV_PCM, _WAV_EXTENSIBLE = 1, 0xFFFE
_PCM_NAMES = {1: "u8", 2: "s16le", 3: "s24le", 4: "s32le"}  # by bytes per sample


class ByteRange(NamedTuple):
    """The bytes from `start` to before `stop`."""

    start: int
    stop: int


class PcmFormat(NamedTuple):
    """Encoding of raw samples.

    Attributes:
      name: FFmpeg's name of the encoding, such as "s16le".
      rate: Sample rate in Hz.
      channels: Number of interleaved channels.
    """

    name: str
    rate: int
    channels: int


class _ChunkLayout(NamedTuple):
    """Layout of the chunks of a format.

    Attributes:
      header: Name and size of a chunk.
      first: Position of the first chunk.
      alignment: Chunks start at multiples of this.
      counts_header: The size of a chunk includes its header.
    """

    header: struct.Struct
    first: int
    alignment: int
    counts_header: bool = False


_RIFF = _ChunkLayout(struct.Struct("<4sI"), first=12, alignment=2)
_W64 = _ChunkLayout(struct.Struct("<4s12xq"), first=40, alignment=8, counts_header=True)
_CAF = _ChunkLayout(struct.Struct(">4sq"), first=8, alignment=1)


def is_wav(head: bytes) -> bool:
    """Return whether a file is WAV."""
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def wav_samples(head: bytes) -> ByteRange | None:
    """Return the range of the samples of a WAV file, empty if the length is unknown; None if the head is too short."""
    samples = _find_chunk(head, _RIFF, b"data")
    if samples is not None and _is_placeholder(samples.stop - samples.start):
        return ByteRange(samples.start, samples.start)
    return samples


def wav_pcm_format(head: bytes) -> PcmFormat | None:
    """Return the encoding of the samples of a WAV file; None if it is not plain PCM, or the head is too short."""
    chunk = _find_chunk(head, _RIFF, b"fmt ")
    if chunk is None or chunk.stop > len(head) or chunk.stop - chunk.start < 14:
        return None
    tag, channels, rate, _, frame_bytes = struct.unpack_from("<HHIIH", head, chunk.start)
    if tag == _WAV_EXTENSIBLE and chunk.stop - chunk.start >= 40:
        (tag,) = struct.unpack_from("<H", head, chunk.start + 24)
    # The number of bits, after these fields, may be missing, or smaller than the bytes that hold them.
    if tag != _WAV_PCM or channels == 0 or frame_bytes % channels or frame_bytes // channels not in _PCM_NAMES:
        return None
    return PcmFormat(_PCM_NAMES[frame_bytes // channels], rate, channels)


def declared_range(head: bytes) -> ByteRange | None:
    """Return the range of the samples that the header of a WAV, RF64, W64 or CAF file states.

    Returns:
      The range; None for other formats, and if programs that write to a pipe have left the length open.
    """
    samples = None
    if is_wav(head):
        samples = wav_samples(head)
    elif head[:4] in (b"RF64", b"BW64") and head[12:16] == b"ds64" and len(head) >= 36:
        if (samples := _find_chunk(head, _RIFF, b"data")) is not None:
            samples = ByteRange(samples.start, samples.start + int.from_bytes(head[28:36], "little"))
    elif head[:4] == b"riff":
        samples = _find_chunk(head, _W64, b"data")
    elif head[:4] == b"caff":
        samples = _find_chunk(head, _CAF, b"data")
    return samples if samples is not None and samples.start < samples.stop < 1 << 62 else None


def _find_chunk(head: bytes, layout: _ChunkLayout, name: bytes) -> ByteRange | None:
    """Return the content of the first chunk with a name."""
    position = layout.first
    while position + layout.header.size <= len(head):
        chunk_name, size = layout.header.unpack_from(head, position)
        start = position + layout.header.size
        stop = position + size if layout.counts_header else start + size
        if chunk_name == name:
            return ByteRange(start, stop)
        if stop < start:
            return None
        position = -(-stop // layout.alignment) * layout.alignment
    return None


def _is_placeholder(size: int) -> bool:
    """Return whether a size is 0 or close to the largest integers, as arecord, FFmpeg and sox write to pipes."""
    return size == 0 or 0x7FF00000 <= size <= 0x80010000 or size >= 0xFFF00000


def is_complete_ogg(tail: bytes) -> bool:
    """Return whether the last bytes of an Ogg file contain the end of a stream."""
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + _OGG_HEADER:
        return False
    flags, num_segments = tail[start + 5], tail[start + 26]
    segments = tail[start + _OGG_HEADER : start + _OGG_HEADER + num_segments]
    is_whole = len(segments) == num_segments and len(tail) >= start + _OGG_HEADER + num_segments + sum(segments)
    return is_whole and bool(flags & _OGG_END_OF_STREAM)


def mp3_frames(head: bytes) -> int | None:
    """Return the number of frames that the Xing or LAME header of an MP3 file states, None if there is none."""
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    first_frame = head[start : start + 4096]
    for name in (b"Xing", b"Info"):
        position = first_frame.find(name)
        if position >= 0 and position + 12 <= len(first_frame):
            flags, frames = struct.unpack_from(">II", first_frame, position + 4)
            return frames if flags & _XING_HAS_FRAMES else None
    return None
