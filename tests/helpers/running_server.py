"""A server on loopback in a thread of the test, and a client of its websocket protocol."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.uri import parse_uri

from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.decoding.streaming import EndpointConfig
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.recognizers import SpeechModel
from icefall_pathways.serve.server import Server
from icefall_pathways.serve.service import Service

ANY_LOAD = Limits(max_load=1e9)  # tests run on busy machines


def load_model(exp_dir: Path, **options) -> SpeechModel:
    """Load a model whose segments end at short pauses."""
    endpoint = EndpointConfig(rule2_min_trailing_silence=0.2)
    config = ServeConfig(exp_dir=exp_dir, endpoint=endpoint, **{"engine": "eager", "vad": "none"} | options)
    return SpeechModel.build(load_trained_model(config), config)


class RunningServer:
    """A server with its address and its service, which other threads may only read."""

    def __init__(self, port: int, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.address = f"127.0.0.1:{port}"
        self.service = service
        self.loop = loop

    def connect(self, path="/v1/stream", **options):
        return connect(f"ws://{self.address}{path}", compression=None, **options)

    def run_in_loop(self, function: Callable[[], Any]) -> None:
        """Call a function in the event loop, and wait for it; if it returns a task, also for that."""

        async def run() -> None:
            if (task := function()) is not None:
                await task

        asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    def reload(self) -> None:
        """Load the model again."""
        self.run_in_loop(self.service.reload)

    def recognize(self, blocks: Iterable[bytes], changes: Mapping[int, str] | None = None, **start) -> list[dict]:
        """Send audio in blocks and return all messages; `changes` has languages that are requested after a block."""
        messages: list[str | bytes] = [json.dumps({"type": "start", **start})]
        for index, block in enumerate(blocks):
            messages.append(block)
            if changes and index in changes:
                messages.append(json.dumps({"type": "language", "language": changes[index]}))
        with self.connect() as client:
            send_all(client, *messages, '{"type": "end"}')
            return receive_all(client)


@contextmanager
def run_server(model: SpeechModel, limits: Limits = ANY_LOAD, **options) -> Iterator[RunningServer]:
    """Run a server until the end of the block; then no stream may be left."""
    config = ServeConfig(limits=limits, **{"engine": "eager", "vad": "none"} | options)
    started = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    running = []

    async def main() -> None:
        nonlocal model
        service = Service(model, config)
        del model  # a reload releases it
        server = Server(config, service)
        running.append((service, server, asyncio.get_running_loop()))
        started.set()
        await server.run(listener)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    started.wait()
    service, server, loop = running[0]
    try:
        yield RunningServer(listener.getsockname()[1], service, loop)
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join()
    assert not service.streams


@contextmanager
def server_process(folder: Path, port: int, *options: str) -> Iterator[subprocess.Popen]:
    """Run `icefall-pathways serve`, which is killed at the end of the block if it still runs."""
    words = ["serve", "--model", str(folder), "--port", str(port), "--engine", "eager", "--max-load", "1e9"]
    words += ["--idle-timeout", "1000", "--vad", "none"]
    process = subprocess.Popen(
        [sys.executable, "-m", "icefall_pathways", *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout.readline() == f"serving {folder.name} (en nl) on http://127.0.0.1:{port}/\n"
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def raw_client(
    address: str, path: str = "/v1/stream", **options: int
) -> Iterator[tuple[socket.socket, ClientProtocol]]:
    """Open a websocket without the library's thread: it reads nothing and answers nothing.

    Args:
      address: Host and port.
      path: Path of the websocket.
      **options: Options of the socket, such as SO_RCVBUF=2048.

    Yields:
      The connected socket, and a protocol that encodes messages: pass what `encoded` returns to `sendall`.
    """
    host, port = address.split(":")
    with socket.socket() as connection:
        for name, value in options.items():
            connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        connection.connect((host, int(port)))
        protocol = ClientProtocol(parse_uri(f"ws://{address}{path}"))
        protocol.send_request(protocol.connect())
        connection.sendall(encoded(protocol))
        protocol.receive_data(connection.recv(2048))
        yield connection, protocol


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail after some time."""
    deadline = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert result, f"the condition did not hold within {seconds:g} s"


def encoded(protocol: ClientProtocol) -> bytes:
    """Return the bytes of the messages that were passed to a protocol since the last call."""
    return b"".join(protocol.data_to_send())


def blocks(samples: np.ndarray, size: int = 3200) -> list[bytes]:
    """Split samples into messages of `size` bytes."""
    data = samples.tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def send_all(client, *messages: str | bytes) -> None:
    """Send messages unless the server closes the connection before: it may refuse the stream after the first one."""
    with suppress(ConnectionClosed):
        for message in messages:
            client.send(message)


def receive_result(client) -> list[dict]:
    """Return the messages through the first result; a busy server may send the final one without partial ones."""
    messages = [json.loads(client.recv())]
    while messages[-1]["type"] not in ("partial", "final"):
        messages.append(json.loads(client.recv()))
    return messages


def receive_all(client) -> list[dict]:
    """Return the messages until the server closes the connection, for whatever reason."""
    messages = []
    with suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(client.recv()))
    return messages


def texts(messages: list[dict]) -> list[str]:
    """Return the texts of the final results."""
    return [message["text"] for message in messages if message["type"] == "final" and message["text"]]
