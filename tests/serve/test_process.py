"""The server process: signals, TLS and errors at its start."""

import json
import re
import signal

import pytest
from running_server import blocks, receive_all, server_process, texts
from websockets.sync.client import connect

from icefall_pathways import cli


def test_sigterm_ends_streams_with_their_final_results(served_dir, free_port, speech):
    """And refuses new ones meanwhile; the exit status is 0."""
    with server_process(served_dir, free_port) as process:
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
    assert (process.returncode, output, errors) == (0, "", "")


def test_address_in_use_is_reported(served_dir, free_port, capsys):
    with server_process(served_dir, free_port) as process:
        with pytest.raises(SystemExit):
            cli.run_command("serve", ["--model", str(served_dir), "--port", str(free_port), "--engine", "eager"])
        assert "choose another --port" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0


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
