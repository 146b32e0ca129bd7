"""The server process: signals, TLS and errors at its start."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from running_server import blocks, receive_all, texts
from websockets.sync.client import connect

from icefall_pathways import cli


def start_server(served_dir, port, *options):
    words = ["serve", "--model", str(served_dir), "--port", str(port), "--engine", "eager", "--max-load", "1e9"]
    words += ["--idle-timeout", "1000"]
    command = [sys.executable, "-m", "icefall_pathways", *words, *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout.readline() == f"serving {served_dir.name} (en nl) on http://127.0.0.1:{port}/\n"
    return process


def test_sigterm_ends_streams_with_their_final_results(served_dir, free_port, speech):
    """And refuses new ones meanwhile; the exit status is 0."""
    process = start_server(served_dir, free_port)
    try:
        with connect(f"ws://127.0.0.1:{free_port}/v1/stream") as client:
            client.send(json.dumps({"type": "start", "language": "en"}))
            for block in blocks(speech):
                client.send(block)
            first = json.loads(client.recv())
            while json.loads(client.recv())["type"] != "partial":
                pass
            process.send_signal(signal.SIGTERM)
            messages = receive_all(client)
        assert first["type"] == "ready"
        assert messages[-1]["type"] == "ended" and messages[-1]["reason"] == "shutdown"
        assert messages[-2]["type"] == "final" and texts(messages)
        assert client.close_code == 1001
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (0, "", "")


def test_address_in_use_is_reported(served_dir, free_port, capsys):
    process = start_server(served_dir, free_port)
    try:
        with pytest.raises(SystemExit):
            cli.run_command("serve", ["--model", str(served_dir), "--port", str(free_port), "--engine", "eager"])
        assert "choose another --port" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()


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
