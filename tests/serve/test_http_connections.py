"""HTTP connections: requests that do not arrive, and too many connections."""

import json
import socket
import time
from contextlib import ExitStack, suppress
from urllib.request import urlopen

import pytest
from running_server import ANY_LOAD, receive_all, run_server, wait_until

from icefall_pathways.serve import http_connections
from icefall_pathways.serve.http_connections import RequestTimeoutProtocol
from icefall_pathways.serve.limits import Limits

LIMITS = Limits(max_load=ANY_LOAD.max_load, idle_timeout=1.0, upload_timeout=4.0)
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


@pytest.mark.parametrize("sent", [b"", b"GET /he"])
def test_head_that_does_not_arrive_is_not_awaited(server, sent):
    with open_socket(server) as connection:
        connection.sendall(sent)
        assert is_closed(connection)
    assert is_healthy(server)


GET = b"GET /health HTTP/1.1\r\nHost: server\r\n\r\n"
BODIES = [b"Content-Length: 100\r\n\r\n--x", b"Transfer-Encoding: chunked\r\n\r\n5\r\n--"]


def received(connection: socket.socket) -> str:
    """Return what the server sends until it closes the connection."""
    data = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data.decode()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("previous", [b"", GET, 2 * GET])
def test_body_that_does_not_arrive_is_not_awaited(server, previous, body, caplog):
    """Also if the request arrives before the previous ones of the connection are answered."""
    with open_socket(server) as connection:
        connection.sendall(previous + HEAD + body)
        *answers, last = received(connection).split("HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == ["200"] * previous.count(GET)
    assert last.startswith("408 Request Timeout") and "no part of the request arrived for 1 s (--idle-timeout)" in last
    assert not caplog.records and is_healthy(server)


@pytest.mark.parametrize(
    "headers",
    [
        b"Cookie: %s\r\n" % (9000 * b"a"),
        b"".join(b"X-%d: a\r\n" % index for index in range(200)),
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ],
    ids=["long header", "many headers", "body", "chunked body"],
)
def test_handshake_that_websockets_do_not_accept_is_answered(server, headers, caplog):
    upgrade = b"Host: server\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with open_socket(server) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /v1/stream HTTP/1.1\r\n" + upgrade + headers + b"\r\n")
        answer = received(connection)
    assert answer.startswith("HTTP/1.1 400 Bad Request\r\n")
    assert "Failed to open a WebSocket connection: " in answer and "send a GET request without a body" in answer
    assert not caplog.records and is_healthy(server)


def send_slowly(connection: socket.socket) -> None:
    """Send parts of a body until the server closes the connection."""
    with suppress(OSError):
        for _ in range(100):
            connection.sendall(b"1\r\nx\r\n")
            time.sleep(0.2)


def test_body_in_small_parts_has_to_arrive_in_time(server, caplog):
    with open_socket(server) as connection:
        file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(file), file))
        start = time.monotonic()
        send_slowly(connection)
        assert 3.5 < time.monotonic() - start < 15
        answer = received(connection)
    assert answer.startswith("HTTP/1.1 408") and "did not arrive within 4 s (--upload-timeout)" in answer
    assert not caplog.records


def test_body_of_a_refused_request_is_not_read_for_ever(server):
    with open_socket(server) as connection:
        connection.sendall(HEAD.replace(b"multipart/form-data", b"text/plain") + b"Transfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        start = time.monotonic()
        send_slowly(connection)
        assert time.monotonic() - start < 15
    assert is_healthy(server)


def test_answer_that_is_not_read_is_dropped(server, monkeypatch):
    lost, connection_lost = [], RequestTimeoutProtocol.connection_lost
    monkeypatch.setattr(RequestTimeoutProtocol, "connection_lost", lambda *args: lost.append(connection_lost(*args)))
    host, port = server.address.split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((host, int(port)))
        connection.settimeout(0.5)
        with suppress(TimeoutError):  # the server stops reading
            connection.sendall(2000 * GET.replace(b"/health", b"/page/page.js"))
        wait_until(lambda: lost, 30)


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
