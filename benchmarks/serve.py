#!/usr/bin/env python3
r"""Load generator: streams of mixed languages against a server on loopback, and the recognizer alone.

Usage, after `make demo` (and calibrate_language_id.py for --language auto):

  cd egs/mls/ASR
  OMP_NUM_THREADS=1 ../../../benchmarks/serve.py --model exp/demo/pathways --cuts data/demo/fbank/*_cuts_test.jsonl.gz

Streams at real time: for each number of streams, the 50th, 95th and 99th percentile of

  partial  from the arrival of the audio that a partial or final result covers to the result: the right context of a
           chunk, batching and computation
  final    from the end of the audio to the last message

and the CPU seconds of the server process per second of audio, and the memory that the server adds per stream.

Streams as fast as possible, which the server slows down to its capacity: CPU seconds per second of audio of the server
process, of the recognizer alone with a chunk of all streams per batch, and of the server if all audio is in one
language, all in turn in every round; and the memory that the server adds per stream. The load generator runs on the
same machine; its CPU time is not counted.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from tables import print_table
from websockets.asyncio.client import connect

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.cut_audio import load_samples
from icefall_pathways.decoding.streaming import VadName, score_speech
from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import Options, Port, PositiveFloat, PositiveInt, Range, parse_numbers
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.recognizers import SpeechModel

REPORT = Path(__file__).with_suffix(".md")
HEADER = ("streams", "partial 50/95/99 %", "final 50/95/99 %", "refused", "CPU", "kB per stream")
CAPACITY = ("streams", "server", "recognizer alone", "share", "one language", "mixed / one", "kB per stream")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class LoadConfig(Options):
    """Options of the load generator."""

    model: Path = Path("exp/demo/pathways")
    """Experiment folder of the model."""

    cuts: tuple[Path, ...] = ()
    """Manifests of cuts whose audio is played; the language of a cut is that of its supervision."""

    streams: str = "1 16 64 256"
    """Numbers of simultaneous streams at real time."""

    capacity_streams: str = "16 64"
    """Numbers of simultaneous streams as fast as possible."""

    rounds: PositiveInt = 3
    """Repetitions of the measurements as fast as possible, of which the median counts."""

    vad: VadName = "silero"
    """Voice activity detection of the server, and of the recognizer alone."""

    seconds: PositiveFloat = 20.0
    """Seconds of audio per stream."""

    ramp: PositiveFloat = 1.0
    """Seconds in which all streams at real time start."""

    max_load: PositiveFloat = 0.7
    """--max-load of the server for streams at real time; 1e9: refuse none."""

    packet: PositiveFloat = 0.1
    """Seconds of audio per message."""

    language: str = ""
    """Language that all streams request, such as auto; empty: that of their cuts."""

    port: Port = 6016
    """Port of the server."""

    write: bool = False
    """Write the tables to benchmarks/serve.md."""


@dataclass
class Measurement:
    """Delays in seconds, and the number of refused streams."""

    partial: list[float] = field(default_factory=list)
    final: list[float] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True)
class Speech:
    """Audio of one stream: 16-bit samples and their language."""

    samples: np.ndarray
    language: str


def load_speech(config: LoadConfig, count: int, num_languages: int | None = None) -> list[Speech]:
    """Return the audio of `count` streams: joined cuts of one language each, with the first languages in turn."""
    by_language: dict[str, list[np.ndarray]] = {}
    for path in config.cuts:
        for cut in islice(CutSet.from_file(path), 50):
            samples = (load_samples(cut).numpy() * 32767).astype("<i2")
            by_language.setdefault(cut.supervisions[0].language, []).append(samples)
    if not by_language:
        raise ValueError("no audio: pass manifests of cuts to --cuts")
    size = int(config.seconds * SAMPLE_RATE)
    speech = []
    for index, language in enumerate(islice(cycle(list(by_language)[:num_languages]), count)):
        parts = by_language[language]
        shift = index % len(parts)
        joined = np.concatenate(parts[shift:] + parts[:shift])
        speech.append(Speech(np.resize(joined, size), language))
    return speech


async def play(
    url: str, speech: Speech, config: LoadConfig, offset: float, packet: float, measured: Measurement
) -> None:
    """Play one stream with a message every `packet` seconds, `offset` seconds later than others."""
    await asyncio.sleep(offset)
    async with connect(url, compression=None, open_timeout=None, ping_interval=None) as client:
        language = config.language or speech.language
        await client.send(json.dumps({"type": "start", "language": language}))
        if json.loads(await client.recv())["type"] != "ready":
            measured.refused += 1
            return
        start, data = time.monotonic(), speech.samples.tobytes()
        size = 2 * int(config.packet * SAMPLE_RATE)

        async def send() -> None:
            for index, position in enumerate(range(0, len(data), size), 1):
                await asyncio.sleep(start + index * packet - time.monotonic())
                await client.send(data[position : position + size])
            await client.send('{"type": "end"}')

        sending = asyncio.create_task(send())
        async for text in client:
            message, now = json.loads(text), time.monotonic()
            if message["type"] in ("partial", "final") and not sending.done():
                measured.partial.append(now - start - message["end"])
            elif message["type"] == "ended":
                measured.final.append(now - start - config.seconds)
        await sending


def play_all(speech: Sequence[Speech], config: LoadConfig, real_time: bool) -> Measurement:
    """Play all streams, which start at different times within `ramp` seconds if they are played at real time."""
    measured, url = Measurement(), f"ws://127.0.0.1:{config.port}/v1/stream"
    delay, packet = (config.ramp / len(speech), config.packet) if real_time else (0.0, 0.0)

    async def play_streams() -> None:
        await asyncio.gather(
            *(play(url, audio, config, index * delay, packet, measured) for index, audio in enumerate(speech))
        )

    asyncio.run(play_streams())
    return measured


@contextmanager
def run_server(config: LoadConfig, max_streams: int, *options: str) -> Iterator[int]:
    """Run the server, and yield its process ID after one stream has been decoded."""
    words = ["serve", "--model", str(config.model), "--port", str(config.port), "--max-streams", str(max_streams)]
    words += ["--vad", config.vad, *options]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "icefall_pathways", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "serving" not in (line := process.stdout.readline()):
        if not line:
            raise ValueError("the server did not start")
    try:
        play_all(load_speech(replace(config, seconds=3.0), 1), replace(config, seconds=3.0), real_time=False)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """Yield a list with the resident bytes of a process at the start, and at the end of the block their maximum too."""
    values, ended = [resident_bytes(pid)], threading.Event()

    def watch() -> None:
        peak = values[0]
        while not ended.wait(0.05):
            peak = max(peak, resident_bytes(pid))
        values.append(peak)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield values
    finally:
        ended.set()
        thread.join()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def recognizer_cost(config: LoadConfig, model: SpeechModel, speech: Sequence[Speech]) -> float:
    """Return CPU seconds per second of audio of the recognizer alone, with a chunk of all streams per batch."""
    recognizer, chunk = model.recognizer, round(model.chunk_seconds * SAMPLE_RATE)
    sessions = [recognizer.open(model.resolve_language(config.language or audio.language)) for audio in speech]
    start = time.process_time()
    for position in range(0, len(speech[0].samples), chunk):
        parts = [audio.samples[position : position + chunk].astype(np.float32) / 2**15 for audio in speech]
        blocks = [torch.from_numpy(part) for part in parts]
        for session, block, scored in zip(sessions, blocks, score_speech(sessions, blocks), strict=True):
            session.accept_samples(block, scored)
        while any(recognizer.is_ready(session) for session in sessions):
            recognizer.advance(sessions)
    return (time.process_time() - start) / (len(speech) * config.seconds)


def percentiles(values: Sequence[float]) -> str:
    """Format percentiles in milliseconds."""
    return " / ".join(f"{1000 * p:.0f}" for p in np.percentile(values, (50, 95, 99))) + " ms" if values else "–"


def measure_delays(config: LoadConfig) -> Iterator[list[str]]:
    """Yield the rows of the table of delays."""
    for count in parse_numbers("--streams", config.streams, int, Range(1)):
        with run_server(config, count, "--max-load", str(config.max_load)) as pid:
            cpu = cpu_seconds(pid)
            with peak_memory(pid) as memory:
                measured = play_all(load_speech(config, count), config, real_time=True)
            served = max(1, count - measured.refused)
            cost = (cpu_seconds(pid) - cpu) / (served * config.seconds)
        delays = (percentiles(measured.partial), percentiles(measured.final))
        per_stream = (memory[1] - memory[0]) / served / 1e3
        yield [str(count), *delays, str(measured.refused), f"{cost:.4f}", f"{per_stream:.0f}"]


def measure_capacity(config: LoadConfig) -> Iterator[list[str]]:
    """Yield the rows of the table of capacity."""
    model = SpeechModel.load(ServeConfig(exp_dir=config.model, vad=config.vad))
    for count in parse_numbers("--capacity-streams", config.capacity_streams, int, Range(1)):
        mixed, monolingual = load_speech(config, count), load_speech(config, count, 1)
        costs: list[tuple[float, ...]] = []
        with run_server(config, count, "--max-load", "1e9") as pid:
            with peak_memory(pid) as memory:
                server_cost(config, pid, mixed)
            for _ in range(config.rounds):
                alone = recognizer_cost(config, model, mixed)
                costs.append((server_cost(config, pid, mixed), alone, server_cost(config, pid, monolingual)))
        server, alone, single = np.median(costs, axis=0)
        per_stream = (memory[1] - memory[0]) / count / 1e3
        ratios = (f"{alone / server:.2f}", f"{single:.4f}", f"{server / single:.2f}")
        yield [str(count), f"{server:.4f}", f"{alone:.4f}", *ratios, f"{per_stream:.0f}"]


def server_cost(config: LoadConfig, pid: int, speech: Sequence[Speech]) -> float:
    """Return CPU seconds of the server per second of audio that arrives as fast as it is accepted."""
    cpu = cpu_seconds(pid)
    play_all(speech, config, real_time=False)
    return (cpu_seconds(pid) - cpu) / (len(speech) * config.seconds)


def main(config: LoadConfig) -> None:
    """Measure, print and optionally store the tables."""
    path = REPORT if config.write else None
    print_table(CAPACITY, list(measure_capacity(config)), path, "capacity")
    print_table(HEADER, list(measure_delays(config)), path, "load")


if __name__ == "__main__":
    run_script(lambda: main(parse(LoadConfig, __doc__ or "")))
