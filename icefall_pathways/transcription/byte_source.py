"""Bytes of a file or a pipe, as FFmpeg reads them."""

from typing import IO

from icefall_pathways.transcription.headers import (
    HEAD_BYTES,
    TAIL_BYTES,
    PcmFormat,
    are_chunks,
    declared_range,
    is_wav,
    mp4_boxes,
    starts_again,
    voc_block_size,
    wav_pcm_format,
    wav_samples,
)

_PREFIX_BYTES, _MAX_WAV_HEADER = 64, 1 << 16
_CONTAINERS = (
    *(b"RIFF", b"RF64", b"BW64", b"riff\x2e\x91\xcf\x11", b"FORM", b"caff", b".snd"),
    *(b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"#!AMR"),
)
_SECOND_FILE = "another file follows"
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
# Read from start to end, even from files: all bytes are counted, and a file gives the same samples as a pipe.
_SEQUENTIAL = (b"RIFF", b"RF64", b"BW64", b"OggS", b"ID3", b"\xff")


class ByteSource:
    """A binary stream that is read from start to end.

    FFmpeg calls `read` from native code, which would drop a KeyboardInterrupt: it ends the bytes instead, and
    `raise_interrupt` raises it later.

    Args:
      stream: The stream; a pipe, or a file at its start.
      pcm: Encoding of raw samples; None: the stream states its format.

    Attributes:
      prefix: The first bytes, or all bytes of the header of WAV.
      pcm: Encoding of the samples, if `read` returns raw samples; the header of WAV with plain PCM is skipped.
      head: The first bytes that were read, up to 1 MiB, with the header.
      tail: The last bytes that were read.
      size: Number of bytes that were read, with the header.
    """

    def __init__(self, stream: IO[bytes], pcm: PcmFormat | None = None) -> None:
        self._stream = stream
        # read1 returns the bytes that have arrived without waiting for more.
        self._read_available = getattr(stream, "read1", stream.read)
        self._interrupted = False
        self.prefix = self._pending = _read_prefix(stream)
        self.head, self.tail, self.size = bytearray(), b"", 0
        self._stop: int | None = None
        self.pcm = None
        if pcm is not None and not self.is_known_container:
            self.pcm = pcm
        else:
            samples = declared_range(self.prefix)
            self._stop = samples.stop if samples is not None else None
            self._skip_wav_header()

    def _skip_wav_header(self) -> None:
        """Prepare to read plain PCM samples without their header.

        FFmpeg would examine 64 KiB of them for S/PDIF first, two seconds of speech, and would take a format chunk
        without the number of bits for 8 bits.
        """
        samples = wav_samples(self.prefix) if is_wav(self.prefix) else None
        if samples is not None and (pcm := wav_pcm_format(self.prefix)) is not None:
            self.pcm = pcm
            self._count(self.prefix[: samples.start])
            self._pending = self.prefix[samples.start :]

    @property
    def is_known_container(self) -> bool:
        """The stream starts with a signature that raw samples do not have."""
        return self.prefix.startswith(_CONTAINERS) or self.is_mp4

    @property
    def is_mp4(self) -> bool:
        """The stream is MP4, M4A, MOV or 3GP, whose index may be at the end."""
        return self.prefix[4:8] in _MP4_BOXES

    @property
    def needs_seeking(self) -> bool:
        """The format cannot be read from a pipe: FFmpeg does not skip chunks of CAF and W64 without seeking."""
        return self.is_mp4 or self.prefix.startswith((b"caff", b"riff")) or voc_block_size(self.prefix) == 0

    @property
    def is_sequential(self) -> bool:
        """The format is read without seeking."""
        return self.prefix.startswith(_SEQUENTIAL)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes that have arrived; none at the end, and after an interrupt."""
        if self._stop is not None:
            size = min(size, self._stop - self.size)
        if self._interrupted or size <= 0:
            return b""
        try:
            data, self._pending = self._pending[:size], self._pending[size:]
            data = data or self._read_available(size)
        except KeyboardInterrupt:
            self._interrupted = True
            return b""
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        self.head += data[: HEAD_BYTES - len(self.head)]
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        self.size += len(data)

    def describe_rest(self) -> str | None:
        """Describe what follows the samples, after the end of `read`, if it is more audio."""
        samples = declared_range(bytes(self.head))
        if samples is None or self.size < samples.stop:
            return None
        following = self._read_from(samples.stop)
        if starts_again(self.prefix, following):
            return _SECOND_FILE
        if is_wav(self.prefix) and not are_chunks(following):
            return "more samples follow than its header states"
        return None

    def _read_from(self, _position: int) -> bytes:
        """Return the next bytes from the end of the samples, which is also the end of `read`."""
        return self._pending + self._stream.read(_MAX_WAV_HEADER)

    def raise_interrupt(self) -> None:
        """Raise the KeyboardInterrupt that `read` received, if any."""
        if self._interrupted:
            raise KeyboardInterrupt


class SeekableByteSource(ByteSource):
    """A file whose format requires seeking; `head` and `size` are those of the file, and `tail` is empty."""

    def __init__(self, stream: IO[bytes]) -> None:
        stream.seek(0)
        super().__init__(stream)
        self.seek(0)
        self.head = bytearray(stream.read(HEAD_BYTES))
        self.size = stream.seek(0, 2)
        self.seek(0)

    def describe_rest(self) -> str | None:
        """Describe what follows the samples, if it is more audio."""
        if self.is_mp4:
            return _SECOND_FILE if list(mp4_boxes(self._stream, self.size)).count(b"ftyp") > 1 else None
        return super().describe_rest()

    def _read_from(self, position: int) -> bytes:
        self.seek(position)
        return self._stream.read(_MAX_WAV_HEADER)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end, and after an interrupt."""
        try:
            return b"" if self._interrupted else self._stream.read(size)
        except KeyboardInterrupt:
            self._interrupted = True
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Change the position, at most to the end; damaged files state positions that a file cannot have."""
        return self._stream.seek(max(0, min(offset, self.size)) if whence == 0 else offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()


def _read_prefix(stream: IO[bytes]) -> bytes:
    """Read the first bytes, and the header of WAV up to the samples, waiting for them."""
    prefix, size = b"", _PREFIX_BYTES
    while len(prefix) < size and (more := stream.read(min(size - len(prefix), _PREFIX_BYTES))):
        prefix += more
        if is_wav(prefix) and wav_samples(prefix) is None:
            size = _MAX_WAV_HEADER
        elif len(prefix) >= _PREFIX_BYTES:
            break
    return prefix
