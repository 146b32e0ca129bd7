#!/usr/bin/env python3
r"""Benchmark what a data loader worker does to an utterance of 15 s: decode audio, compute features, read stored ones.

Usage:

  OMP_NUM_THREADS=1 benchmarks/audio_reading.py --rounds 5 --write 1

All steps run in each round, one after another; a time is the median of CPU seconds over rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from fake_mls import speech_like
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.cut import MonoCut
from tables import print_table

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.data.feature_shards import write_shard
from icefall_pathways.data.features import FbankConfig, KaldiNativeFbank, fbank_backend
from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import Options, PositiveInt
from icefall_pathways.sharding.shards import Shard

SECONDS = 15.0
NUM_FILES = 8
FORMATS = {"flac": (".flac", SAMPLE_RATE), "opus": (".opus", SAMPLE_RATE), "opus of 48 kHz": ("-48.opus", 48_000)}
HEADER = ("step", "ms per utterance", "times real time")


@dataclass(frozen=True)
class ReadingConfig(Options):
    """Options of the benchmark."""

    rounds: PositiveInt = 7
    """Number of rounds."""

    write: bool = False
    """Write the results to benchmarks/audio_reading.md."""


def make_recordings(folder: Path) -> dict[str, list[Recording]]:
    """Write the same audio in every format, and return the recordings, at 16 kHz."""
    recordings: dict[str, list[Recording]] = {name: [] for name in FORMATS}
    for name, (suffix, rate) in FORMATS.items():
        for index in range(NUM_FILES):
            path = folder / f"{index}{suffix}"
            samples = np.repeat(speech_like(SECONDS, index), rate // SAMPLE_RATE)
            options = {"subtype": "OPUS", "format": "OGG"} if "opus" in suffix else {"subtype": "PCM_16"}
            soundfile.write(path, samples, rate, **options)
            recordings[name].append(Recording.from_file(path, recording_id=f"{index}").resample(SAMPLE_RATE))
    return recordings


def decode_with_ffmpeg(recording: Recording) -> np.ndarray:
    """Decode a file with FFmpeg, without resampling."""
    with av.open(recording.sources[0].source) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def make_steps(folder: Path) -> dict[str, Callable[[int], object]]:
    """Return functions of the index of an utterance, by name."""
    steps: dict[str, Callable[[int], object]] = {}
    recordings = make_recordings(folder)
    for name, files in recordings.items():
        steps[f"decode {name}: Lhotse with libsndfile"] = lambda index, files=files: files[index].load_audio()
        steps[f"decode {name}: FFmpeg"] = lambda index, files=files: decode_with_ffmpeg(files[index])
    audio = [recording.load_audio() for recording in recordings["flac"]]
    native = KaldiNativeFbank(FbankConfig().extractor().config)
    if fbank_backend() == "kaldifeat":
        extractor = FbankConfig().extractor()
        steps["features: kaldifeat"] = lambda index: extractor.extract(audio[index], SAMPLE_RATE)
    steps["features: kaldi-native-fbank"] = lambda index: native.extract(audio[index], SAMPLE_RATE)
    cuts = [
        MonoCut(file.id, 0.0, file.duration, 0, [SupervisionSegment(file.id, file.id, 0.0, SECONDS)], recording=file)
        for file in recordings["flac"]
    ]
    shard = Shard(folder, 0, ())
    write_shard(shard, cuts, store_feats=True)
    stored = list(CutSet.from_file(shard.path("cuts")))
    steps["read stored features"] = lambda index: stored[index].load_features()
    return steps


def measure(config: ReadingConfig) -> dict[str, float]:
    """Return the CPU seconds per utterance of each step, by its name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(config.rounds):
            for name, step in steps.items():
                start = time.process_time()
                for index in range(NUM_FILES):
                    step(index)
                times[name].append((time.process_time() - start) / NUM_FILES)
    return {name: statistics.median(values) for name, values in times.items()}


def main(config: ReadingConfig) -> None:
    """Measure, and print or write the table."""
    rows = [[name, f"{1000 * seconds:.1f}", f"{SECONDS / seconds:.0f}"] for name, seconds in measure(config).items()]
    print_table(
        HEADER,
        rows,
        Path(__file__).with_suffix(".md") if config.write else None,
        f"torch {torch.__version__.split('+')[0]}",
    )


if __name__ == "__main__":
    run_script(lambda: main(parse(ReadingConfig, __doc__)))
