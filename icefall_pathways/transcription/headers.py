"""Facts that the headers of containers state, and that FFmpeg does not report.

FFmpeg reads truncated files of these formats without an error: WAV, RF64, W64, AIFF and CAF state the size of the
samples, Ogg marks its last page, MPEG-TS has packets of one size, and MP3 files may start with the number of frames.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

_MAX_OGG_PAGE = 65307  # bytes
TAIL_BYTES = 2 * _MAX_OGG_PAGE
HEAD_BYTES = 1 << 20  # headers with pictures or long comments

_SIZE_IN_DS64, _MAX_SIZE = 0xFFFFFFFF, 1 << 62
# Sizes that programs write to pipes, where they cannot correct them at the end. WAV: 2^31 (arecord), 2^31 - 1 (lame),
# 0x7ffff000 (sox, MPlayer), 2^32 - 1 (FFmpeg); AIFF: 0x7f000000 and 8 bytes of the chunk (sox).
_WAV_PLACEHOLDERS = (1 << 31, 0x7FFFF000, (1 << 32) - 1)
_AIFF_PLACEHOLDERS = (0x7F000008,)
VOC_PLACEHOLDER = 0xFFFFFF
_VOC_SIGNATURE = b"Creative Voice File\x1a"
_VOC_SAMPLES = (1, 9)  # types of blocks
_MAX_BLOCK = 1 << 16  # bytes of a block of samples are fewer
_OGG_HEADER, _OGG_END_OF_STREAM = 27, 4
_XING_HAS_FRAMES = 1
# Kilobits per second of AC-3 by the code of the frame size; FFmpeg does not report frames that are too short.
_AC3_BIT_RATES = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_LAST_AC3_VERSION = 10  # later ones are E-AC-3
_MPEGTS_SYNC = 0x47
# Bytes per packet and position of the first sync byte: plain, after time stamps (Blu-ray), with error correction.
_MPEGTS_LAYOUTS = ((188, 0), (192, 4), (204, 0))
_WAV_EXTENSIBLE = 0xFFFE
_PCM_NAMES = {  # by format tag and bytes per sample
    **{(1, 1): "u8", (1, 2): "s16le", (1, 3): "s24le", (1, 4): "s32le"},
    **{(3, 4): "f32le", (3, 8): "f64le", (6, 1): "alaw", (7, 1): "mulaw"},
}


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
_AIFF = _ChunkLayout(struct.Struct(">4sI"), first=12, alignment=2)
_CAF = _ChunkLayout(struct.Struct(">4sq"), first=8, alignment=1)


def is_wav(head: bytes) -> bool:
    """Return whether a file is WAV, or RF64: WAV with sizes of 64 bits."""
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def wav_samples(head: bytes) -> ByteRange | None:
    """Return the range of the samples of a WAV file, empty if the length is unknown; None if the head is too short."""
    samples = _find_chunk(head, _RIFF, b"data")
    if samples is None:
        return None
    size = samples.stop - samples.start
    sizes = _find_chunk(head, _RIFF, b"ds64")
    if sizes is not None and size == _SIZE_IN_DS64:
        size = int.from_bytes(head[sizes.start + 8 : sizes.start + 16], "little")
    elif _is_placeholder(size, _WAV_PLACEHOLDERS):
        size = 0
    return ByteRange(samples.start, samples.start + size)


def wav_pcm_format(head: bytes) -> PcmFormat | None:
    """Return the encoding of the samples of a WAV file; None if it is not plain PCM, or the head is too short."""
    chunk = _find_chunk(head, _RIFF, b"fmt ")
    if chunk is None or chunk.stop > len(head) or chunk.stop - chunk.start < 14:
        return None
    tag, channels, rate, _, frame_bytes = struct.unpack_from("<HHIIH", head, chunk.start)
    if tag == _WAV_EXTENSIBLE and chunk.stop - chunk.start >= 40:
        (tag,) = struct.unpack_from("<H", head, chunk.start + 24)
    # The number of bits, after these fields, may be missing, or smaller than the bytes that hold them.
    if channels == 0 or frame_bytes % channels or (name := _PCM_NAMES.get((tag, frame_bytes // channels))) is None:
        return None
    return PcmFormat(name, rate, channels)


def declared_range(head: bytes) -> ByteRange | None:
    """Return the range of the samples that the header of a WAV, RF64, W64, AIFF or CAF file states.

    Returns:
      The range; None for other formats, and if programs that write to a pipe have left the length open.
    """
    samples = None
    if is_wav(head):
        samples = wav_samples(head)
    elif head[:4] == b"riff":
        samples = _find_chunk(head, _W64, b"data")
    elif head[:4] == b"FORM":
        samples = _find_chunk(head, _AIFF, b"SSND")
        if samples is not None and _is_placeholder(samples.stop - samples.start, _AIFF_PLACEHOLDERS):
            return None
    elif head[:4] == b"caff":
        samples = _find_chunk(head, _CAF, b"data")
    return samples if samples is not None and samples.start < samples.stop < _MAX_SIZE else None


def voc_block_size(head: bytes) -> int | None:
    """Return the size that the first block of samples of VOC states; None for other formats and short heads.

    Programs that write to a pipe leave 0, which FFmpeg accepts if it can seek, or `VOC_PLACEHOLDER`.
    """
    if not head.startswith(_VOC_SIGNATURE):
        return None
    position = int.from_bytes(head[20:22], "little")
    while position + 4 <= len(head):
        size = int.from_bytes(head[position + 1 : position + 4], "little")
        if head[position] in _VOC_SAMPLES:
            return size
        position += 4 + size
    return None


def starts_again(head: bytes, following: bytes) -> bool:
    """Return whether the start of a file occurs once more in the bytes that follow its samples."""
    size_field = b".{4}"
    return re.search(re.escape(head[:4]) + size_field + re.escape(head[8:12]), following, re.DOTALL) is not None


def are_chunks(following: bytes) -> bool:
    """Return whether the bytes that follow the samples of WAV are padding or chunks, not more samples."""
    name = following.lstrip(b"\0")[:4]
    return all(32 <= byte < 127 for byte in name)


def mp4_boxes(file: IO[bytes], file_size: int) -> Iterator[bytes]:
    """Yield the names of the boxes of MP4, without those inside other boxes."""
    position = 0
    while position + 16 <= file_size:
        file.seek(position)
        size, name, long_size = struct.unpack(">I4sQ", file.read(16))
        yield name
        size = long_size if size == 1 else size
        if size < 8:  # up to the end of the file
            return
        position += size


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


def _is_placeholder(size: int, placeholders: Sequence[int]) -> bool:
    """Return whether a size is 0 or one of the placeholders, rounded down to whole blocks of samples."""
    return size == 0 or any(0 <= placeholder - size < _MAX_BLOCK for placeholder in placeholders)


def is_complete_ogg(tail: bytes) -> bool:
    """Return whether the last bytes of an Ogg file contain the end of a stream."""
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + _OGG_HEADER:
        return False
    flags, num_segments = tail[start + 5], tail[start + 26]
    segments = tail[start + _OGG_HEADER : start + _OGG_HEADER + num_segments]
    is_whole = len(segments) == num_segments and len(tail) >= start + _OGG_HEADER + num_segments + sum(segments)
    return is_whole and bool(flags & _OGG_END_OF_STREAM)


def is_complete_mpegts(head: bytes, size: int) -> bool:
    """Return whether an MPEG-TS file of `size` bytes ends with a whole packet, or does not start with one."""
    for packet, first in _MPEGTS_LAYOUTS:
        if set(head[first : first + 8 * packet : packet]) == {_MPEGTS_SYNC}:
            return size % packet == 0
    return True


def ac3_frame_bytes(frame: bytes) -> int:
    """Return the size in bytes that a frame of AC-3, or the first frame of E-AC-3, states; 0 if it states none."""
    if len(frame) < 6:
        return 6  # the header that states the size is incomplete
    if frame[5] >> 3 > _LAST_AC3_VERSION:
        return 2 * (((frame[2] & 7) << 8 | frame[3]) + 1)
    rate_code, size_code = frame[4] >> 6, frame[4] & 63
    if rate_code == 3 or size_code >= 2 * len(_AC3_BIT_RATES):
        return 0
    bit_rate = _AC3_BIT_RATES[size_code >> 1]
    words = (2 * bit_rate, bit_rate * 96000 // 44100 + (size_code & 1), 3 * bit_rate)[rate_code]  # 48, 44.1, 32 kHz
    return 2 * words


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
