"""Faults of clients: each affects its own stream only, and leaves nothing open."""

import contextlib
import json
import random
import socket
import struct
import threading

import numpy as np
import pytest
from running_server import ANY_LOAD, blocks, encoded, raw_client, receive_all, run_server, send_all, texts, wait_until
from websockets.frames import Frame, Opcode

from icefall_pathways.serve import server as server_module
from icefall_pathways.serve.keepalive import KeepaliveProtocol
from icefall_pathways.serve.limits import Limits

START = json.dumps({"type": "start", "language": "en"})


@pytest.fixture
def expected(server, speech):
    """Return a check that the server still decodes, and no stream is left."""
    before = texts(server.recognize(blocks(speech), language="en"))
    assert before
    yield before
    assert texts(server.recognize(blocks(speech), language="en")) == before
    wait_until(lambda: not server.service.streams)


def test_tiny_frames_have_the_result_of_large_ones(server, speech, expected):
    data = speech[:16000].tobytes()
    with server.connect() as client:
        client.send(START)
        for start in range(0, len(data), 7):
            client.send(data[start : start + 7])
            client.send(b"")
        client.send('{"type": "end"}')
        messages = receive_all(client)
    assert texts(messages) == texts(server.recognize([data], language="en"))


def test_flood_of_tiny_frames_does_not_change_other_streams(server, speech, expected):
    """Its own result is that of the same bytes in one message, and its buffer stays small."""
    data = speech[:10000].tobytes()
    alone = server.recognize(blocks(speech), language="en", partial_results=False)
    with raw_client(server.address) as (raw, protocol):
        protocol.send_text(START.encode())
        for index in range(len(data)):
            protocol.send_binary(data[index : index + 1])
        sending = threading.Thread(target=raw.sendall, args=[encoded(protocol)])
        sending.start()
        assert server.recognize(blocks(speech), language="en", partial_results=False) == alone
        sending.join()
        protocol.send_text(b'{"type": "end"}')
        raw.sendall(encoded(protocol))
        finals = []
        while protocol.close_rcvd is None:
            protocol.receive_data(raw.recv(65536))
            messages = [
                json.loads(frame.data)
                for frame in protocol.events_received()
                if isinstance(frame, Frame) and frame.opcode is Opcode.TEXT
            ]
            finals += texts(messages)
    assert finals == texts(server.recognize([data], language="en"))


def test_half_open_connection_is_closed(model, speech, monkeypatch):
    """A client whose machine is gone answers no ping; its stream is freed before the idle timeout."""
    monkeypatch.setattr(server_module, "_KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "_KEEPALIVE_TIMEOUT", 0.2)
    limits = Limits(max_load=ANY_LOAD.max_load, idle_timeout=1e6)
    with run_server(model, limits) as server, raw_client(server.address) as (raw, protocol):
        protocol.send_text(START.encode())
        protocol.send_binary(speech.tobytes())
        raw.sendall(encoded(protocol))
        wait_until(lambda: server.service.streams)
        wait_until(lambda: not server.service.streams)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(65536):  # until the server has closed the connection
                pass
        assert texts(server.recognize(blocks(speech), language="en"))


def test_client_that_vanishes_frees_its_stream(server, speech, expected):
    for _ in range(3):
        with server.connect() as client:
            client.send(START)
            client.send(speech.tobytes())
            client.recv()
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset on close
            client.socket.close()


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_no_frames_are_rejected(server, seed, expected):
    raw = random.Random(seed).randbytes(2000)
    with server.connect() as client:
        client.send(START)
        client.recv()
        client.socket.sendall(raw)
        with contextlib.suppress(OSError):  # the server has closed the connection already
            client.socket.shutdown(socket.SHUT_WR)
        receive_all(client)
    assert client.close_code is not None


def test_bytes_that_are_no_http_request_are_rejected(server, expected):
    with socket.create_connection(server.address.split(":")) as raw:
        raw.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert b"400" in raw.recv(1000)


@contextlib.contextmanager
def client_that_does_not_read(model, speech):
    """Run a server that drops such a client, and yield its socket and protocol after its stream was freed."""
    limits = Limits(max_load=ANY_LOAD.max_load, idle_timeout=1.0, max_buffer_seconds=0.5)
    with run_server(model, limits) as server, raw_client(server.address, SO_RCVBUF=2048) as (raw, protocol):
        raw.settimeout(0.5)
        protocol.send_text(json.dumps({"type": "start", "language": "nl", "words": "all"}).encode())
        with contextlib.suppress(OSError):  # the server stops reading
            for block in blocks(np.tile(speech, 20)):
                protocol.send_binary(block)
                raw.sendall(encoded(protocol))
        dropped = b'pathways_streams_total{outcome="limit",protocol="websocket"} 1.0'
        wait_until(lambda: dropped in server.service.metrics.format())
        yield raw, protocol


def test_client_that_does_not_read_is_dropped_with_a_reason(model, speech):
    """Its results do not accumulate; if it reads later, the reason follows them."""
    with client_that_does_not_read(model, speech) as (raw, protocol):
        raw.settimeout(30)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while protocol.close_rcvd is None and (data := raw.recv(65536)):
            protocol.receive_data(data)
    assert protocol.close_rcvd.code == 1008 and "--idle-timeout" in protocol.close_rcvd.reason


def test_connection_of_a_client_that_never_reads_is_closed(model, speech, monkeypatch):
    closed, connection_lost = [], KeepaliveProtocol.connection_lost
    monkeypatch.setattr(server_module, "_KEEPALIVE_TIMEOUT", 0.2)
    monkeypatch.setattr(KeepaliveProtocol, "connection_lost", lambda *args: closed.append(connection_lost(*args)))
    with client_that_does_not_read(model, speech):
        wait_until(lambda: closed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_end_only_their_stream(server, value, expected):
    messages = server.recognize([np.full(1600, value, "<f4").tobytes()], format="pcm_f32le", language="en")
    assert messages[-2]["code"] == "invalid_audio" and "not finite" in messages[-2]["message"]


def test_wrong_sample_rate_gives_a_result_of_another_duration(server, speech, expected):
    messages = server.recognize(blocks(speech), language="en", sample_rate=48000)
    assert messages[-1]["duration"] == 1.0


def test_failure_of_one_stream_in_a_batch_does_not_change_the_others(server, model, speech, monkeypatch, expected):
    """An exception while a batch is decoded ends the stream that causes it."""
    search = model.recognizer.decoder.searches["en"]
    advance = search.inner.advance

    def fail_for_loud_streams(state, encoder_out, lens):
        if encoder_out.isnan().any():
            raise RuntimeError("broken")
        return advance(state, encoder_out, lens)

    stream = model.recognizer.decoder.model.stream

    def poison(x, x_lens, states):
        out, lens, states = stream(x, x_lens, states)
        loud = x.flatten(1).mean(1) > -2.0
        return out.masked_fill(loud[:, None, None], float("nan")), lens, states

    monkeypatch.setattr(search.inner, "advance", fail_for_loud_streams)
    monkeypatch.setattr(model.recognizer.decoder.model, "stream", poison)
    quiet = (speech // 30).astype("<i2")
    loud = np.clip(speech.astype(np.int32) * 10, -32768, 32767).astype("<i2")
    alone = server.recognize(blocks(quiet), language="en", partial_results=False)
    with server.connect() as good, server.connect() as bad:
        for client in (good, bad):
            client.send(json.dumps({"type": "start", "language": "en", "partial_results": False}))
        for good_block, bad_block in zip(blocks(quiet), blocks(loud), strict=True):
            good.send(good_block)
            send_all(bad, bad_block)
        good.send('{"type": "end"}')
        failed = receive_all(bad)
        assert failed[-2]["code"] == "internal"
        assert receive_all(good) == alone
