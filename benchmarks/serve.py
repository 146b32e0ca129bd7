#!/usr/bin/env python3
r"""Load generator: streams of mixed languages at real time against a server on loopback, and the engine alone.

Usage, after `make demo` (and calibrate_language_id.py for --languages auto):

  OMP_NUM_THREADS=1 benchmarks/serve.py --model exp/demo/pathways --cuts data/demo/fbank/mls-*_cuts_test.jsonl.gz

For each number of streams, the table has the 50th, 95th and 99th percentile of

  partial  from the arrival of the audio that a partial or final result covers to the result: the right context of a
           chunk, batching and computation
  final    from the end of the audio to the last message

and, of the server process, CPU seconds per second of audio, the same of the recognizer alone in one batch per pathway,
and the memory per stream. The load generator runs on the same machine; its CPU time is not counted.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from tables import put_table
from tabulate import tabulate
from websockets.asyncio.client import connect

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.cut_audio import load_samples
from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import Options, Port, PositiveFloat, Range, parse_numbers
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.recognizers import SpeechModel

REPORT = Path(__file__).with_suffix(".md")
HEADER = ("streams", "partial 50/95/99 %", "final 50/95/99 %", "refused", "CPU", "CPU, engine alone", "MB per stream")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class LoadConfig(Options):
    """Options of the load generator."""

    model: Path = Path("exp/demo/pathways")
    """Experiment folder of the model."""

    cuts: tuple[Path, ...] = ()
    """Manifests of cuts whose audio is played; the language of a cut is that of its supervision."""

    streams: str = "1 16 64"
    """Numbers of simultaneous streams."""

    seconds: PositiveFloat = 20.0
    """Seconds of audio per stream."""

    packet: PositiveFloat = 0.1
    """Seconds of audio per message."""

    language: str = ""
    """Language that all streams request, such as auto; empty: that of their cuts."""

    port: Port = 6016
    """Port of the server."""

    write: bool = False
    """Write the table to benchmarks/serve.md."""


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


def load_speech(config: LoadConfig, count: int) -> list[Speech]:
    """Return the audio of `count` streams: cuts of one language each, joined, with the languages in turn."""
    by_language: dict[str, list[np.ndarray]] = {}
    for path in config.cuts:
        for cut in islice(CutSet.from_file(path), 50):
            samples = (load_samples(cut).numpy() * 32767).astype("<i2")
            by_language.setdefault(cut.supervisions[0].language, []).append(samples)
    if not by_language:
        raise ValueError("no audio: pass manifests of cuts to --cuts")
    size = int(config.seconds * SAMPLE_RATE)
    speech = []
    for index, language in enumerate(islice(cycle(by_language), count)):
        parts = by_language[language]
        shift = index // len(by_language) % len(parts)
        joined = np.concatenate(parts[shift:] + parts[:shift])
        speech.append(Speech(np.resize(joined, size), language))
    return speech


async def play(url: str, speech: Speech, config: LoadConfig, offset: float, measured: Measurement) -> None:
    """Play one stream at real time, `offset` seconds later than others."""
    await asyncio.sleep(offset)
    async with connect(url, compression=None, open_timeout=60) as client:
        language = config.language or speech.language
        await client.send(json.dumps({"type": "start", "language": language}))
        if json.loads(await client.recv())["type"] != "ready":
            measured.refused += 1
            return
        start, data = time.monotonic(), speech.samples.tobytes()
        size = 2 * int(config.packet * SAMPLE_RATE)

        async def send() -> None:
            for index, position in enumerate(range(0, len(data), size), 1):
                await asyncio.sleep(start + index * config.packet - time.monotonic())
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


async def play_all(url: str, speech: Sequence[Speech], config: LoadConfig) -> Measurement:
    """Play all streams, which start at different times within a second."""
    measured = Measurement()
    await asyncio.gather(
        *(play(url, audio, config, index / len(speech), measured) for index, audio in enumerate(speech))
    )
    return measured


@contextmanager
def run_server(config: LoadConfig, max_streams: int) -> Iterator[int]:
    """Run the server, and yield its process ID."""
    words = ["serve", "--model", str(config.model), "--port", str(config.port), "--max-streams", str(max_streams)]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "icefall_pathways", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "serving" not in (line := process.stdout.readline()):
        if not line:
            raise ValueError("the server did not start")
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a process since the last reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def engine_cost(config: LoadConfig, speech: Sequence[Speech]) -> float:
    """Return CPU seconds per second of audio of the recognizer alone, with a chunk of all streams per batch."""
    serve_config = ServeConfig(exp_dir=config.model)
    model = SpeechModel.build(load_trained_model(serve_config), serve_config)
    recognizer, chunk = model.recognizer, round(model.chunk_seconds * SAMPLE_RATE)
    sessions = [recognizer.open(model.resolve_language(config.language or audio.language)) for audio in speech]
    start = time.process_time()
    for position in range(0, len(speech[0].samples), chunk):
        for session, audio in zip(sessions, speech, strict=True):
            block = audio.samples[position : position + chunk].astype(np.float32) / 2**15
            session.accept_samples(torch.from_numpy(block))
        recognizer.advance(sessions)
    return (time.process_time() - start) / (len(speech) * config.seconds)


def percentiles(values: Sequence[float]) -> str:
    """Format percentiles in milliseconds."""
    return " / ".join(f"{1000 * p:.0f}" for p in np.percentile(values, (50, 95, 99))) + " ms" if values else "–"


def measure(config: LoadConfig) -> list[list[object]]:
    """Return the rows of the table."""
    rows: list[list[object]] = []
    url = f"ws://127.0.0.1:{config.port}/v1/stream"
    for count in parse_numbers("--streams", config.streams, int, Range(1)):
        speech = load_speech(config, count)
        with run_server(config, max_streams=count) as pid:
            cpu, memory = cpu_seconds(pid), peak_bytes(pid)
            measured = asyncio.run(play_all(url, speech, config))
            cost = (cpu_seconds(pid) - cpu) / (max(1, count - measured.refused) * config.seconds)
            per_stream = (peak_bytes(pid) - memory) / count / 1e6
        alone = engine_cost(config, speech)
        delays = (percentiles(measured.partial), percentiles(measured.final))
        rows.append([str(count), *delays, str(measured.refused), f"{cost:.4f}", f"{alone:.4f}", f"{per_stream:.2f}"])
    return rows


def main(config: LoadConfig) -> None:
    """Measure, print and optionally store the table."""
    rows = measure(config)
    print(tabulate(rows, HEADER, tablefmt="pipe", disable_numparse=True))
    if config.write:
        put_table(REPORT, "load", HEADER, rows)


if __name__ == "__main__":
    run_script(lambda: main(parse(LoadConfig, __doc__ or "")))
