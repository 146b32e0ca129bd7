"""The server process: signals, TLS and errors at its start."""

import json
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from running_server import blocks, encoded, raw_client, receive_all, receive_result, run_server, server_process, texts
from websockets.sync.client import connect

from icefall_pathways import cli
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.server import serve


def test_sigterm_ends_streams_with_their_final_results(served_dir, free_port, speech):
    """And refuses new ones meanwhile; the exit status is 0."""
    with server_process(served_dir, free_port) as process:
        with connect(f"ws://127.0.0.1:{free_port}/v1/stream") as client:
            client.send(json.dumps({"type": "start", "language": "en"}))
            for block in blocks(speech):
                client.send(block)
            messages = receive_result(client)
            process.send_signal(signal.SIGTERM)
            messages += receive_all(client)
        assert messages[0]["type"] == "ready"
        assert messages[-1]["type"] == "ended" and messages[-1]["reason"] == "shutdown"
        assert messages[-2]["type"] == "final" and texts(messages)
        assert client.close_code == 1001
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "", "")


def test_sigterm_does_not_wait_for_a_client_that_answers_nothing(served_dir, free_port, speech):
    """It gets the final results and the end of the connection, and the process exits with status 0."""
    with server_process(served_dir, free_port) as process, raw_client(f"127.0.0.1:{free_port}") as (raw, protocol):
        protocol.send_text(b'{"type": "start", "language": "en"}')
        protocol.send_binary(speech.tobytes())
        raw.sendall(encoded(protocol))
        raw.recv(1)  # the stream is open
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        received = b""
        while data := raw.recv(65536):
            received += data
    assert b'"type":"final"' in received and b'"reason":"shutdown"' in received


def test_address_in_use_is_reported(served_dir, free_port, capsys):
    with server_process(served_dir, free_port) as process:
        with pytest.raises(SystemExit):
            cli.run_command("serve", ["--model", str(served_dir), "--port", str(free_port), "--engine", "eager"])
        assert "choose another --port" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_tls_serves_https_and_wss(model, speech, tmp_path):
    """With a certificate that a client rejects unless it trusts its authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with run_server(model, tls_certificate=tmp_path / "both.pem", tls_key=tmp_path / "both.pem") as server:
        assert httpx2.get(f"https://{server.address}/health", verify=trusting).json()["status"] == "ok"
        with connect(f"wss://{server.address}/v1/stream", ssl=trusting) as client:
            client.send(json.dumps({"type": "start", "language": "en"}))
            client.send(speech.tobytes())
            client.send('{"type": "end"}')
            assert texts(receive_all(client))
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(f"wss://{server.address}/v1/stream", ssl=ssl.create_default_context())
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"http://{server.address}/health")


def health_check(port):
    """Return the status of the image's health check, here for a server on another port."""
    dockerfile = Path(__file__).parents[2] / "deploy" / "Dockerfile"
    words = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile.read_text(), re.MULTILINE)[1])
    assert words[0] == "python" and words[-1].count(":6006/") == 2
    script = words[-1].replace(":6006/", f":{port}/")
    return subprocess.run([sys.executable, *words[1:-1], script], stderr=subprocess.DEVNULL).returncode


def test_health_check_of_the_image(model, tmp_path, free_port, caplog):
    """With and without TLS, and without a server; it leaves nothing in the log."""
    trustme.CA().issue_cert("speech.example.org").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    for tls in ({}, {"tls_certificate": tmp_path / "pem", "tls_key": tmp_path / "pem"}):
        with run_server(model, **tls) as server:
            assert health_check(server.address.split(":")[1]) == 0
    assert health_check(free_port) != 0
    assert not caplog.records


def test_unusable_tls_files_are_reported(served_dir, tmp_path):
    """Before the model is loaded; a key with a password must not wait for it on the terminal."""
    certificate, other = (trustme.CA().issue_cert("127.0.0.1") for _ in range(2))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    encrypted = key.private_bytes(serialization.Encoding.PEM, traditional, encryption)
    (tmp_path / "encrypted.pem").write_bytes(encrypted)
    (tmp_path / "damaged.pem").write_text("nothing")
    for key_name, message in {
        "missing.pem": "cannot read --tls-key",
        "other.pem": "KEY_VALUES_MISMATCH",
        "encrypted.pem": "its private key without a password",
        "damaged.pem": "expected PEM files",
    }.items():
        config = ServeConfig(
            exp_dir=served_dir, tls_certificate=tmp_path / "certificate.pem", tls_key=tmp_path / key_name
        )
        with pytest.raises(ValueError, match=message) as raised:
            serve(config)
        assert key_name in str(raised.value)


@pytest.mark.parametrize("secret", ["sécret".encode(), "sécret".encode("latin-1"), b"two\nlines", b"\0"])
def test_secret_that_a_header_cannot_have_is_reported(tmp_path, secret, capsys):
    (tmp_path / "token").write_bytes(secret)
    with pytest.raises(SystemExit) as stop:
        cli.run_command("serve", ["--token-file", str(tmp_path / "token")])
    assert stop.value.code != 0
    errors = capsys.readouterr().err
    assert str(tmp_path / "token") in errors and "expected one line of ASCII letters" in re.sub(r"[\s│]+", " ", errors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-key", "key.pem"], "pass both --tls-certificate and --tls-key"),
        (["--token-file", "/nowhere"], "cannot read --token-file /nowhere"),
        (["--max-streams", "0"], "--max-streams is 0: expected at least 1"),
    ],
)
def test_invalid_options_are_reported(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run_command("serve", options)
    assert stop.value.code != 0
    assert message in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
