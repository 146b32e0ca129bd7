"""Audio files of all formats, encoded in memory."""

import io

import av
import numpy as np
import torch

from icefall_pathways.decoding.streaming import AudioError

# Name: container, codec, and the options of codec and container.
FORMATS = {
    "wav": ("wav", "pcm_s16le", {}),
    "w64": ("w64", "pcm_s16le", {}),
    "rf64": ("wav", "pcm_s16le", {"rf64": "always"}),
    "aiff": ("aiff", "pcm_s16be", {}),
    "au": ("au", "pcm_s16be", {}),
    "caf": ("caf", "pcm_s16be", {}),
    "voc": ("voc", "pcm_s16le", {}),
    "flac": ("flac", "flac", {}),
    "ogg": ("ogg", "vorbis", {"strict": "experimental"}),  # FFmpeg's own encoder, which is stereo only
    "opus": ("ogg", "libopus", {}),
    "oga": ("ogg", "flac", {}),
    "mp3": ("mp3", "libmp3lame", {}),
    "aac": ("adts", "aac", {}),
    "m4a": ("ipod", "aac", {}),
    "alac": ("ipod", "alac", {}),
    "mkv": ("matroska", "aac", {}),
    "webm": ("webm", "libopus", {}),
    "ts": ("mpegts", "aac", {}),
    "ac3": ("ac3", "ac3", {}),
    "avi": ("avi", "mp2", {}),
}
LOSSLESS = ("wav", "w64", "rf64", "aiff", "au", "caf", "voc", "flac", "oga", "alac")


def speech_like(seconds=2.0, rate=48000, channels=1, seed=0):
    """Return 16-bit samples (n, C), the same in all channels: bursts of harmonics and a little noise."""
    time = np.arange(int(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 200 * k * time) / k for k in range(1, 9)) * (1 + np.sin(2 * np.pi * 3 * time))
    noise = np.random.default_rng(seed).standard_normal(len(time))
    mono = (0.08 * tone + 0.01 * noise) * 32767
    return np.repeat(mono.astype("<i2")[:, None], channels, axis=1)


def encode(samples, name, rate=48000, *, seekable=True, **options):
    """Encode samples (n, C) in a format; a file that is not seekable is written as to a pipe."""
    container_format, codec, defaults = FORMATS[name]
    options = {**defaults, **options}
    if name == "ogg" and samples.shape[1] == 1:
        samples = np.repeat(samples, 2, axis=1)
    output = io.BytesIO()
    with av.open(output if seekable else _Pipe(output), "w", format=container_format, options=options) as container:
        layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 4096
        resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return output.getvalue()


class _Pipe(io.RawIOBase):
    """An output that cannot seek."""

    def __init__(self, output):
        self.output = output

    def writable(self):
        return True

    def write(self, data):
        return self.output.write(data)


class SlowPipe(io.RawIOBase):
    """A pipe that delivers `step` bytes per read, and counts them."""

    def __init__(self, data, step=4096):
        self.source, self.step, self.delivered = io.BytesIO(data), step, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.source.read(min(len(buffer), self.step))
        buffer[: len(data)] = data
        self.delivered += len(data)
        return len(data)


def read_all(blocks):
    """Return all samples, and the message of the error after them, if any."""
    samples = [torch.zeros(0)]
    try:
        samples += blocks
    except AudioError as error:
        return torch.cat(samples), str(error)
    return torch.cat(samples), None
