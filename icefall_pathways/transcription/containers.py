"""Decoding of audio files and pipes of all formats with FFmpeg, through PyAV."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from icefall_pathways.decoding.streaming import AudioError
from icefall_pathways.transcription.byte_source import ByteSource, SeekableByteSource
from icefall_pathways.transcription.headers import (
    VOC_PLACEHOLDER,
    ac3_frame_bytes,
    declared_range,
    is_complete_mpegts,
    is_complete_ogg,
    mp3_frames,
    voc_block_size,
)
from icefall_pathways.transcription.resampling import check_sample_rate

# Not all formats of FFmpeg: playlists open other files, and some formats match any bytes.
_OPTIONS = {
    "format_whitelist": "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpeg,mpegts,nistsphere,ogg,tta,voc,w64,wav,wv",
    "protocol_whitelist": "",
}
# Return the first samples of a pipe as early as possible, instead of examining some seconds first.
_LIVE_OPTIONS = {"analyzeduration": "1"}

# Formats whose headers state the duration, and by how many seconds the decoded audio may be shorter: codecs pad, and
# containers count the padding differently. What FFmpeg reports for other formats is an estimate.
_DURATION_TOLERANCE = {
    **dict.fromkeys(("ape", "au", "flac", "nistsphere", "tta", "wv"), 0.0),
    **dict.fromkeys(("mov,mp4,m4a,3gp,3g2,mj2", "mp3"), 0.15),
    **dict.fromkeys(("avi", "matroska,webm"), 0.5),
}
_UNKNOWN_DURATION = 1 << 30  # in AVI files that FFmpeg writes to a pipe
_AC3_CODECS = ("ac3", "eac3")
_MIN_GAP = 0.1  # seconds
_MAX_DECIMALS = 6
_MAX_FILLED = 600.0  # seconds by which the silence in gaps may exceed the audio: time stamps may be damaged
_TAGS = (b"ID3", b"TAG", b"APETAGEX")  # in the middle of files that were joined


class UnknownFormatError(AudioError):
    """Bytes that are not in a format which is supported."""


class Block(NamedTuple):
    """Decoded samples.

    Attributes:
      rate: Sample rate in Hz.
      samples: Samples (n, C) in [-1, 1].
    """

    rate: int
    samples: NDArray[np.float32]


def decode(source: ByteSource) -> Iterator[Block]:
    """Decode the audio of a container, packet by packet as it arrives.

    Packets that cannot be decoded are skipped. Silence takes the place of audio that is missing between time stamps.

    Raises:
      AudioError: The format is not supported, or the audio is damaged or incomplete; what can be decoded is yielded
        first.
    """
    try:
        container = _open(source)
    except AudioError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        source.raise_interrupt()
        message = f"cannot read it ({_describe(error)})"
        if source.is_mp4:
            raise AudioError(f"{message}: a truncated MP4 file, whose index at the end is missing?") from error
        raise UnknownFormatError(
            f"{message}: expected audio or video, such as WAV, FLAC, MP3, Ogg, MP4 or WebM"
        ) from error
    with container:
        yield from _Decoder(container, source).blocks()


def _open(source: ByteSource) -> InputContainer:
    if not source.prefix and source.pcm is None:
        raise AudioError("it is empty")
    if source.pcm is None:
        options = _OPTIONS if isinstance(source, SeekableByteSource) else _OPTIONS | _LIVE_OPTIONS
        return av.open(source, "r", container_options=options, metadata_errors="replace")
    check_sample_rate(source.pcm.rate)
    options = {**_LIVE_OPTIONS, "sample_rate": str(source.pcm.rate), "ch_layout": f"{source.pcm.channels}C"}
    return av.open(source, "r", format=source.pcm.name, container_options=options)


class _Decoder:
    """Decode the best audio stream of a container, and keep account of what is missing.

    Attributes:
      seconds: Duration of the decoded samples.
    """

    def __init__(self, container: InputContainer, source: ByteSource) -> None:
        self.seconds = 0.0
        self._container = container
        self._source = source
        self._audio = _select_audio(container)
        self._pcm_frame_bytes = _pcm_frame_bytes(self._audio)
        self._rate = 0
        self._damages: list[str] = []
        self._has_partial_block = False
        self._last_packet_end = 0.0  # of all streams, in seconds
        self._filled = 0.0  # seconds of silence in gaps
        self._frame_end: float | None = None  # time stamp of the end of the last frame
        self._converter, self._converter_input = av.AudioResampler(format="flt"), ("", "", 0)

    def blocks(self) -> Iterator[Block]:
        for frame in self._frames():
            check_sample_rate(frame.rate)
            yield from self._fill_gap(frame)
            block = Block(frame.rate, self._convert(frame))
            self._rate = frame.rate
            self.seconds += len(block.samples) / block.rate
            yield block
        self._check()

    def _frames(self) -> Iterator[AudioFrame]:
        for packet in self._packets():
            try:
                frames = self._decode(packet)
            except (av.FFmpegError, ValueError) as error:
                if not bytes(packet).startswith(_TAGS):
                    self._add_damage(_describe(error))
                continue
            yield from (frame for frame in frames if frame.samples > 0)

    def _decode(self, packet: "av.Packet[Any]") -> list[AudioFrame]:
        if self._audio.codec_context.name in _AC3_CODECS and 0 < packet.size < ac3_frame_bytes(bytes(packet)):
            raise ValueError("the end of a frame is missing")  # FFmpeg would replace it by other audio, without a note
        if packet.size % self._pcm_frame_bytes == 0:
            return self._audio.decode(packet)
        # The end of a truncated file: the decoder would drop all samples of the packet.
        whole = av.Packet(bytes(packet)[: packet.size // self._pcm_frame_bytes * self._pcm_frame_bytes])
        whole.pts, whole.time_base = packet.pts, packet.time_base
        return self._audio.decode(whole) if whole.size > 0 else []

    def _packets(self) -> Iterator["av.Packet[Any]"]:
        """Yield the packets of the audio stream; the last one is empty and flushes the decoder."""
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, ValueError) as error:
                self._add_damage(_describe(error))
                packet = None
            except OSError as error:
                raise AudioError(f"cannot read it after {self.seconds:.2f} s ({_describe(error)})") from error
            self._source.raise_interrupt()
            if packet is None:
                return
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._last_packet_end = max(self._last_packet_end, end)
            if packet.stream_index == self._audio.index:
                self._has_partial_block |= packet.is_corrupt and self._states_block_sizes()
                yield packet

    def _states_block_sizes(self) -> bool:
        """Return whether blocks state their sizes: FFmpeg marks the last packet of a file that ends inside a block.

        A cut between two blocks cannot be noticed.
        """
        is_open = voc_block_size(bytes(self._source.head)) == VOC_PLACEHOLDER
        return self._container.format.name == "voc" and not is_open

    def _convert(self, frame: AudioFrame) -> NDArray[np.float32]:
        """Return the samples (n, C) of a frame, in [-1, 1]."""
        key = frame.format.name, frame.layout.name, frame.rate
        if key != self._converter_input:
            self._converter, self._converter_input = av.AudioResampler(format="flt"), key
        try:
            packed = [converted.to_ndarray() for converted in self._converter.resample(frame)]
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"{key[0]} samples of {key[1]} are not supported ({_describe(error)})") from error
        return np.concatenate(packed, axis=1, dtype=np.float32).reshape(-1, frame.layout.nb_channels)

    def _fill_gap(self, frame: AudioFrame) -> Iterator[Block]:
        """Yield silence in place of audio that is missing in front of a frame."""
        start, end = frame.time, self._frame_end
        if start is None or (end is not None and abs(start - end) <= _MIN_GAP):
            start = end
        elif end is not None and start > end:
            self._add_damage(f"no audio for {start - end:.2f} s")
            is_plausible = start - end + 2 * self._filled <= _MAX_FILLED + self.seconds
            missing = round((start - end) * frame.rate) if is_plausible else 0
            self._filled += missing / frame.rate
            for length in [frame.rate] * (missing // frame.rate) + [missing % frame.rate]:
                self.seconds += length / frame.rate
                yield Block(frame.rate, np.zeros((length, frame.layout.nb_channels), np.float32))
        self._frame_end = None if start is None else start + frame.samples / frame.rate

    def _add_damage(self, reason: str) -> None:
        self._damages.append(f"damaged at {self.seconds:.2f} s ({reason})")

    def _check(self) -> None:
        """Check that nothing is missing.

        Raises:
          AudioError: The audio is truncated or damaged.
        """
        tolerance = _DURATION_TOLERANCE.get(self._container.format.name, 0.0)
        expected = self._stated_seconds()
        if expected is not None and max(self.seconds, self._last_packet_end) < expected - tolerance:
            raise AudioError(
                f"truncated or damaged after {_durations(self.seconds, expected)} (shorter than its header states)"
            )
        if (rest := self._source.describe_rest()) is not None:
            raise AudioError(f"{rest}, after {self.seconds:.2f} s: split or convert the file")
        if self._damages:
            others = f"; and {len(self._damages) - 1} more damages" if len(self._damages) > 1 else ""
            raise AudioError(self._damages[0] + others)
        if self._has_partial_block:
            raise AudioError(f"truncated or damaged after {self.seconds:.2f} s (the end of a block is missing)")
        name = self._container.format.name
        if name == "mpegts" and not is_complete_mpegts(bytes(self._source.head), self._source.size):
            raise AudioError(f"truncated or damaged after {self.seconds:.2f} s (the end of a packet is missing)")
        if name == "ogg" and not is_complete_ogg(self._source.tail):
            raise AudioError(f"truncated or damaged after {self.seconds:.2f} s (the end of the Ogg stream is missing)")

    def _stated_seconds(self) -> float | None:
        """Return the duration that the container states; None if it does not."""
        name, head = self._container.format.name, bytes(self._source.head)
        if (samples := declared_range(head)) is not None:
            if self._source.size >= samples.stop:
                return None
            read = max(1, self._source.size - samples.start)
            return self.seconds * (samples.stop - samples.start) / read
        if name == "mp3":
            frames, samples_per_frame = mp3_frames(head), 1152 if self._rate >= 32000 else 576
            return None if frames is None or self._rate == 0 else frames * samples_per_frame / self._rate
        if name not in _DURATION_TOLERANCE:
            return None
        if self._audio.duration is not None:
            if self._audio.duration == _UNKNOWN_DURATION:
                return None
            return float(self._audio.duration * (self._audio.time_base or 0))
        return None if self._container.duration is None else self._container.duration / av.time_base


def _durations(seconds: float, expected: float) -> str:
    """Return "SECONDS of EXPECTED s", with the decimals, at least two, that show their difference."""
    texts = ((f"{seconds:.{decimals}f}", f"{expected:.{decimals}f}") for decimals in range(2, _MAX_DECIMALS + 1))
    decoded, stated = next((pair for pair in texts if pair[0] != pair[1]), (f"{seconds}", f"{expected}"))
    return f"{decoded} of {stated} s"


def _select_audio(container: InputContainer) -> AudioStream:
    """Return the best audio stream, and make its decoder strict and single-threaded."""
    audio = container.streams.best("audio")
    if not isinstance(audio, AudioStream):
        kinds = sorted({stream.type for stream in container.streams})
        reason = "its header is damaged" if "audio" in kinds else ", ".join(kinds) or "no streams"
        raise AudioError(f"it contains no audio that can be decoded ({reason})")
    if audio.codec_context is None:
        raise AudioError("its audio codec is not supported: convert it to WAV or FLAC")
    audio.codec_context.thread_count = 1
    if audio.codec_context.name in ("flac", *_AC3_CODECS):
        audio.codec_context.options = {"err_detect": "crccheck+explode"}
    if audio.codec_context.name == "alac" and container.format.name == "caf":
        # FFmpeg would drop the end: it takes the missing part of the last packet from its samples.
        audio.codec_context.options = {"flags2": "+skip_manual"}
    return audio


def _pcm_frame_bytes(audio: AudioStream) -> int:
    """Return the bytes of one PCM sample of all channels; 1 for other codecs."""
    if not audio.codec_context.name.startswith("pcm_"):
        return 1
    return max(1, (audio.codec_context.bit_rate or 0) // (8 * max(1, audio.codec_context.sample_rate)))


def _describe(error: Exception) -> str:
    """Return the cause, without the numbers and the file name that PyAV adds."""
    if isinstance(error, av.error.PatchWelcomeError):
        return "FFmpeg cannot read the audio that follows, such as audio with another number of channels"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
