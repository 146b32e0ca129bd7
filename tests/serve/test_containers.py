"""Streams in containers, as browsers record them."""

import json

import pytest
from encoded_audio import encode
from running_server import ANY_LOAD, blocks, receive_all, receive_result, run_server, texts, wait_until

from icefall_pathways import Pathways
from icefall_pathways.serve.limits import Limits


def split(data, size=1000):
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("name", ["webm", "opus", "flac"])
def test_container_has_the_results_of_the_file(server, served_dir, speech, tmp_path, name):
    data = encode(speech[:, None], name, 16000 if name == "flac" else 48000, seekable=False)
    (tmp_path / "file").write_bytes(data)
    asr = Pathways.from_pretrained(served_dir, engine="eager", rule2_min_trailing_silence=0.2, vad="none")
    expected = asr.transcribe(tmp_path / "file", language="en")
    assert expected.segments
    messages = server.recognize(split(data), format="container", language="en")
    assert texts(messages) == [segment.text for segment in expected.segments]
    assert messages[-1]["reason"] == "end"


def test_low_sample_rate_of_a_container_is_reported_at_the_end(server, speech):
    data = encode(speech[::2, None].copy(), "flac", 8000, seekable=False)
    ended = server.recognize(split(data), format="container", language="en")[-1]
    assert len(ended["notes"]) == 1 and "frequencies above 4000 Hz are missing" in ended["notes"][0]


def test_results_arrive_before_the_end_of_the_container(server, speech):
    data = encode(speech[:, None], "webm", 48000, seekable=False)
    with server.connect() as client:
        client.send(json.dumps({"type": "start", "format": "container", "language": "nl"}))
        for block in split(data)[:-2]:
            client.send(block)
        assert receive_result(client)
        client.send('{"type": "end"}')
        assert receive_all(client)[-1]["type"] == "ended"


@pytest.mark.parametrize("data", [b"", b"no audio" * 100])
def test_unknown_container_is_reported(server, data):
    messages = server.recognize([data], format="container", language="en")
    assert messages[-2]["code"] == "invalid_audio" and messages[-1]["reason"] == "error"


def test_clients_that_leave_free_their_threads(model, speech):
    with run_server(model, Limits(max_load=ANY_LOAD.max_load, max_containers=1)) as server:
        start = json.dumps({"type": "start", "format": "container", "language": "en"})
        for _ in range(2):
            with server.connect() as client:
                client.send(start)
                assert json.loads(client.recv())["type"] == "ready"
                client.send(encode(speech[:, None], "webm", seekable=False)[:2000])
                error, *_ = server.recognize([], format="container", language="en")
                assert error["code"] == "busy" and "--max-containers" in error["message"]
            wait_until(lambda: not server.service.streams)
        assert texts(server.recognize(blocks(speech), language="en"))
