#!/usr/bin/env python3
r"""Soak test of the server: memory and text under churn, a million tiny messages, and a stream of hours.

Usage, after `make demo`:

  cd egs/mls/ASR
  ../../../benchmarks/serve_soak.py --model exp/demo/pathways --cuts data/demo/fbank/*_cuts_test.jsonl.gz

churn     clients connect, send a second of audio and leave: most end their stream and read the results, some close the
          connection, some vanish without closing it
messages  one stream of many messages of one byte, whose text must be that of the same bytes in large messages
hours     one stream that repeats some audio for hours, as fast as the server accepts it; from the second repetition
          on, which follows silence as all later ones, the text must be the same

Clients that send faster than the server decodes wait for it, and so do their answers to its pings, after the audio:
the server does not count the time in which it does not read. These clients send no pings, since it answers them as
late.

Each part has a server of its own, and prints its resident memory over time.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from serve import LoadConfig, load_speech, peak_memory, resident_bytes, run_server
from tables import print_table
from websockets.asyncio.client import ClientConnection, connect

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.options import parse, run_script
from icefall_pathways.ranges import Options, Port, PositiveFloat, PositiveInt

REPORT = Path(__file__).with_name("serve.md")
HEADER = ("part", "after", "resident MB", "outcome")
ENDINGS = ("ended", "closed", "vanished")
_NO_LIMITS = ("--max-load", "1e9", "--idle-timeout", "100000")
_VAD_BYTES = 2 * 512  # of a window of the voice activity detection: each repetition has the same windows


@dataclass(frozen=True)
class SoakConfig(Options):
    """Options of the soak test."""

    model: Path = Path("exp/demo/pathways")
    """Experiment folder of the model."""

    cuts: tuple[Path, ...] = ()
    """Manifests of cuts whose audio is played; the language of a cut is that of its supervision."""

    part: Literal["churn", "messages", "hours"] = "churn"
    """Part to run."""

    minutes: PositiveFloat = 20.0
    """Duration of the churn."""

    clients: PositiveInt = 4
    """Simultaneous clients of the churn."""

    messages: PositiveInt = 1_000_000
    """Number of tiny messages."""

    hours: PositiveFloat = 3.0
    """Duration of the long stream."""

    port: Port = 6017
    """Port of the server."""

    write: bool = False
    """Write the table to benchmarks/serve.md."""

    @property
    def load(self) -> LoadConfig:
        """Options of the load generator for the same model and audio."""
        return LoadConfig(self.model, self.cuts, port=self.port)

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"


async def open_stream(config: SoakConfig, language: str, **start: Any) -> ClientConnection:
    """Open a stream."""
    client = await connect(config.url, compression=None, open_timeout=None, ping_interval=None)
    await client.send(json.dumps({"type": "start", "language": language, **start}))
    await client.recv()
    return client


async def receive_texts(client: ClientConnection) -> list[str]:
    """Return the texts of the final results until the end of the stream."""
    messages = [json.loads(text) async for text in client]
    return [message["text"] for message in messages if message["type"] == "final" and message["text"]]


async def recognize(config: SoakConfig, language: str, data: bytes, size: int, repetitions: int = 1) -> list[str]:
    """Return the texts of audio that is sent in messages of `size` bytes, as fast as the server accepts them."""
    client = await open_stream(config, language, partial_results=False)
    receiving = asyncio.create_task(receive_texts(client))
    for _ in range(repetitions):
        for position in range(0, len(data), size):
            await client.send(data[position : position + size])
    await client.send('{"type": "end"}')
    texts = await receiving
    await client.close()
    return texts


async def _run_clients(config: SoakConfig, end: float, rng: random.Random, counts: dict[str, int]) -> None:
    """Run one client after the other until the time `end`, and count how their streams ended."""
    speech = load_speech(config.load, 16)
    while time.monotonic() < end:
        audio = rng.choice(speech)
        start = rng.randrange(len(audio.samples) - SAMPLE_RATE)
        client = await open_stream(config, audio.language)
        for block in range(10):
            await client.send(audio.samples[start + block * 1600 :][:1600].tobytes())
        ending = rng.choices(ENDINGS, [3, 1, 1])[0]
        counts[ending] += 1
        if ending == "ended":
            await client.send('{"type": "end"}')
            await receive_texts(client)
        if ending == "vanished":
            client.transport.abort()
        else:
            await client.close()
        await asyncio.sleep(0.3 * rng.random())


def churn(config: SoakConfig, pid: int) -> list[list[str]]:
    """Return resident memory and numbers of streams over time."""
    start, counts, rows = time.monotonic(), dict.fromkeys(ENDINGS, 0), []
    rng = random.Random(0)

    async def report() -> None:
        for minute in sorted({*(m for m in (1, 2, 5, 10, 15) if m < config.minutes), config.minutes}):
            await asyncio.sleep(start + 60 * minute - time.monotonic())
            outcome = ", ".join(f"{streams} {ending}" for ending, streams in counts.items())
            rows.append(["churn", f"{minute:g} min", f"{resident_bytes(pid) / 1e6:.1f}", outcome])
            print(rows[-1], flush=True)

    async def run() -> None:
        end = start + 60 * config.minutes
        await asyncio.gather(report(), *(_run_clients(config, end, rng, counts) for _ in range(config.clients)))

    asyncio.run(run())
    return rows


def tiny_messages(config: SoakConfig, pid: int) -> list[list[str]]:
    """Return resident memory before a stream of tiny messages, and its maximum; compare the text."""
    (speech,) = load_speech(config.load, 1)
    data = speech.samples.tobytes()
    data = (data * -(-config.messages // len(data)))[: config.messages]
    expected = asyncio.run(recognize(config, speech.language, data, 3200))
    with peak_memory(pid) as memory:
        texts = asyncio.run(recognize(config, speech.language, data, 1))
    outcome = f"{'same' if texts == expected else 'OTHER'} text, {len(' '.join(texts).split())} words"
    return [["messages", f"{config.messages:,} of 1 byte", " / ".join(f"{m / 1e6:.1f}" for m in memory), outcome]]


def long_stream(config: SoakConfig, pid: int) -> list[list[str]]:
    """Return resident memory during a stream of hours; compare its text with that of its start."""
    (speech,) = load_speech(config.load, 1)
    data = speech.samples.tobytes() + bytes(2 * 2 * SAMPLE_RATE)  # a pause, which ends the last segment
    data += bytes(-len(data) % _VAD_BYTES)
    seconds = len(data) / 2 / SAMPLE_RATE
    repetitions = round(config.hours * 3600 / seconds)
    first, both = (asyncio.run(recognize(config, speech.language, data, 3200, n)) for n in (1, 2))
    expected = both[len(first) :]
    rows: list[list[str]] = []

    async def run() -> list[str]:
        async def report() -> None:
            for seconds in count(15, 15):
                await asyncio.sleep(15)
                rows.append(["hours", f"{seconds} s", f"{resident_bytes(pid) / 1e6:.1f}", ""])
                print(rows[-1], flush=True)

        reporting = asyncio.create_task(report())
        texts = await recognize(config, speech.language, data, 3200, repetitions)
        reporting.cancel()
        return texts

    texts, size = asyncio.run(run())[len(first) :], len(expected)
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    same = sum(part == expected for part in parts)
    outcome = f"{same} of {repetitions - 1} repetitions after the first have the same {size} segments"
    rows.append(["hours", f"{config.hours:g} h of audio", f"{resident_bytes(pid) / 1e6:.1f}", outcome])
    return list(islice(rows, 0, None, max(1, len(rows) // 5)))[:-1] + rows[-1:]


PARTS = {"churn": churn, "messages": tiny_messages, "hours": long_stream}


def main(config: SoakConfig) -> None:
    """Run a part, and print and optionally store its table."""
    with run_server(config.load, 64, *_NO_LIMITS) as pid:
        rows = PARTS[config.part](config, pid)
    print_table(HEADER, rows, REPORT if config.write else None, config.part)


if __name__ == "__main__":
    run_script(lambda: main(parse(SoakConfig, __doc__ or "")))
