"""The Wyoming protocol, used with its own client, as Home Assistant does."""

import asyncio
import gc
import json
import socket
from contextlib import contextmanager, suppress

import httpx2
import numpy as np
import pytest
from running_server import blocks, run_server, texts, wait_until
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info

from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.wyoming import start_wyoming

LIMITS = Limits(max_load=1e9, max_streams=2, max_message_bytes=65536)


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def wyoming(model, port):
    with run_wyoming(model, wyoming_port=port, lang="nl") as server:
        yield server


@contextmanager
def run_wyoming(model, **options):
    """Run a server, and wait until it listens for Wyoming clients, too."""
    with run_server(model, LIMITS, **options) as server:
        httpx2.get(f"http://{server.address}/health")
        yield server


@pytest.fixture
def exchange(wyoming, port):
    """Return a function that sends events and returns the answers until the connection ends, or `count` of them."""

    async def run(events, count):
        async with AsyncTcpClient("127.0.0.1", port) as client:
            for event in events:
                await client.write_event(event.event())
            answers = []
            while len(answers) < count and (answer := await client.read_event()) is not None:
                answers.append(answer)
            return answers

    return lambda events, count=100: asyncio.run(run(events, count))


def audio(samples, rate=16000):
    """Return the events of an utterance."""
    parts = [samples[start : start + 1600].tobytes() for start in range(0, len(samples), 1600)]
    return [AudioStart(rate, 2, 1), *(AudioChunk(rate, 2, 1, part) for part in parts), AudioStop()]


def test_server_describes_its_model(exchange, model):
    (answer,) = exchange([Describe()], count=1)
    (program,) = Info.from_event(answer).asr
    assert program.installed and program.models[0].installed
    assert (program.models[0].name, program.models[0].languages) == (model.name, ["en", "nl"])


@pytest.mark.parametrize("language", ["en", "nl", "auto"])
def test_transcripts_equal_the_text_of_the_websocket(exchange, wyoming, speech, language):
    """Also of a second utterance of the connection, which is in the language of the first."""
    answers = exchange([Transcribe(language=language), *audio(speech), *audio(speech[:20000])], count=2)
    transcripts = [Transcript.from_event(answer) for answer in answers]
    expected = [wyoming.recognize(blocks(part), language=language) for part in (speech, speech[:20000])]
    assert [transcript.text for transcript in transcripts] == [" ".join(texts(messages)) for messages in expected]
    words = [message for message in expected[0] if message.get("text")]
    assert transcripts[0].text and transcripts[0].language == words[-1]["language"]


def test_default_language_is_that_of_the_server(exchange, speech):
    (answer,) = exchange(audio(speech[:16000]), count=1)
    assert Transcript.from_event(answer).language == "nl"


@pytest.mark.parametrize(
    ("events", "code", "message"),
    [
        (
            [Transcribe(language="fr"), AudioStart(16000, 2, 1)],
            "invalid_request",
            "this model supports en, nl",
        ),
        ([AudioStart(16000, 4, 2)], "invalid_message", "expected (16000, 2, 1)"),
        (
            [AudioStart(16000, 2, 1), AudioChunk(8000, 2, 1, b"\0\0")],
            "invalid_message",
            "expected (16000, 2, 1)",
        ),
        ([AudioStart(0, 2, 1)], "invalid_audio", "0 Hz"),
        ([AudioStart(16000, 2, 1)] * 2, "invalid_message", "send audio-stop first"),
        ([AudioStop()], "invalid_message", "send audio-start first"),
        ([AudioStart("x", 2, 1)], "invalid_message", "whole number of Hz"),
        ([Transcribe(language=5)], "invalid_message", "language 5: expected a string"),
    ],
)
def test_error_is_sent_before_the_connection_ends(exchange, events, code, message):
    (answer,) = exchange(events)
    error = Error.from_event(answer)
    assert error.code == code and message in error.text


def test_saturated_server_refuses_audio(exchange, wyoming):
    with wyoming.connect() as first, wyoming.connect() as second:
        for client in (first, second):
            client.send('{"type": "start"}')
            client.recv()
        (answer,) = exchange([AudioStart(16000, 2, 1)])
    assert Error.from_event(answer).code == "busy"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b'{"data": {}}\n',
        b'{"type": "transcribe", "data": 5}\n',
        b'{"type": "audio-chunk", "payload_length": 1000000000}\n' + bytes(100000),
        b"x" * 200000,
        b"[" * 50000 + b"\n",
        b'{"type": ' + b"1" * 5000 + b"}\n",
    ],
    ids=lambda data: str(data[:20]),
)
def test_malformed_events_end_only_their_connection(exchange, wyoming, port, speech, caplog, data):
    """Even in the middle of audio; nothing is left of the stream."""

    async def send():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        header = {"type": "audio-start", "data": {"rate": 16000, "width": 2, "channels": 1}}
        writer.write(json.dumps(header).encode() + b"\n" + data)
        with suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)
        writer.close()

    asyncio.run(send())
    (answer,) = exchange(audio(speech[:16000]), count=1)
    assert Transcript.from_event(answer).text
    wait_until(lambda: not wyoming.service.streams)
    gc.collect()  # asyncio reports exceptions of tasks when it deletes them
    assert not caplog.records


def test_client_that_vanishes_leaves_no_stream(wyoming, exchange, speech):
    exchange(audio(speech)[:-1], count=0)
    wait_until(lambda: not wyoming.service.streams)


def test_open_audio_is_transcribed_when_the_server_stops(model, free_port, speech):
    async def run(server):
        async with AsyncTcpClient("127.0.0.1", free_port) as client:
            for event in audio(speech)[:-1]:
                await client.write_event(event.event())
            while not any(stream.decoded_seconds > 1 for stream in server.service.streams):
                await asyncio.sleep(0.05)
            server.run_in_loop(server.service.drain)
            return await client.read_event()

    with run_wyoming(model, wyoming_port=free_port, lang="en") as server:
        answer = asyncio.run(run(server))
    assert Transcript.from_event(answer).text


def test_access_control_and_wyoming_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="no access control"):
        ServeConfig(wyoming_port=10300, token_file=tmp_path / "token")


def test_port_in_use_is_reported(model, wyoming, port):
    with pytest.raises(OSError, match="choose another --wyoming-port"):
        asyncio.run(start_wyoming(wyoming.service, "127.0.0.1", port))


def test_samples_are_not_changed(exchange, wyoming):
    """Silence stays silence: the text is empty, and there is a transcript."""
    (answer,) = exchange(audio(np.zeros(16000, "<i2")), count=1)
    assert Transcript.from_event(answer).text == " ".join(texts(wyoming.recognize([bytes(32000)], language="nl")))
