"""HTTP connections: requests that do not arrive, and too many connections."""

import json
import socket
import time
from contextlib import ExitStack
from urllib.request import urlopen

import pytest
from running_server import ANY_LOAD, receive_all, run_server, wait_until

from icefall_pathways.serve import http_connections
from icefall_pathways.serve.limits import Limits

LIMITS = Limits(max_load=ANY_LOAD.max_load, idle_timeout=1.0)
HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: server\r\nContent-Type: multipart/form-data; boundary=x\r\n"


@pytest.fixture(scope="module")
def server(model):
    with run_server(model, LIMITS) as running:
        yield running


def open_socket(server) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def is_healthy(server) -> bool:
    return urlopen(f"http://{server.address}/health", timeout=60).status == 200


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server has closed a connection, to which it has sent nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /he", HEAD + b"Content-Length: 100\r\n\r\n--x", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--"],
)
def test_request_that_does_not_arrive_is_not_awaited(server, sent):
    with open_socket(server) as connection:
        connection.sendall(sent)
        assert is_closed(connection)
    assert is_healthy(server)


def test_bytes_of_a_head_do_not_prolong_its_time(server):
    with open_socket(server) as connection, pytest.raises(OSError):
        for _ in range(400):  # until the server has closed the connection
            connection.sendall(b"G")
            time.sleep(0.05)


def test_body_may_take_longer_than_the_timeout(server):
    """Each part arrives in time: the form is read to its end, and refused because it has no file."""
    body = b'--x\r\nContent-Disposition: form-data; name="language"\r\n\r\nen\r\n--x--\r\n'
    with open_socket(server) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode())
        for i in range(0, len(body), 10):
            connection.sendall(body[i : i + 10])
            time.sleep(0.3)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_websocket_is_not_closed_by_the_timeout_of_requests(server):
    with server.connect() as client:
        client.send(json.dumps({"type": "start", "language": "en"}))
        for _ in range(6):
            client.send(b"\0\0" * 160)
            time.sleep(0.3)
        client.send(json.dumps({"type": "end"}))
        assert receive_all(client)[-1]["reason"] == "end"


def test_connections_leave_files_for_the_rest_of_the_process(server, monkeypatch):
    monkeypatch.setattr(http_connections, "max_connections", lambda: 3)
    with ExitStack() as stack:
        kept = [stack.enter_context(open_socket(server)) for _ in range(3)]
        assert is_closed(stack.enter_context(open_socket(server)))
        kept[0].sendall(b"GET /health HTTP/1.1\r\nHost: server\r\n\r\n")
        assert kept[0].recv(1000).startswith(b"HTTP/1.1 200")
    wait_until(lambda: is_healthy(server))


@pytest.mark.parametrize(("limit", "expected"), [(1024, 896), (200, 100), (-1, 2**31)])
def test_files_that_connections_may_use(monkeypatch, limit, expected):
    monkeypatch.setattr(http_connections.resource, "getrlimit", lambda _: (limit, limit))
    limit_of_connections = http_connections.max_connections()
    assert limit_of_connections == expected if limit > 0 else limit_of_connections > expected
