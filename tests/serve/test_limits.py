"""Limits and access: what is refused, with which code, and that the running streams continue."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from running_server import ANY_LOAD, blocks, receive_all, run_server, send_all, texts
from websockets.exceptions import InvalidStatus

from icefall_pathways.serve.audio import PcmDecoder, as_float
from icefall_pathways.serve.limits import Limits


def limits(**changes) -> Limits:
    return Limits(**{"max_load": ANY_LOAD.max_load, **changes})


def test_saturated_server_refuses_new_streams_and_continues_the_others(model, speech):
    with run_server(model, limits(max_streams=1)) as server:
        with server.connect() as client:
            client.send(json.dumps({"type": "start", "language": "en"}))
            client.recv()
            (error,) = server.recognize([], language="en")
            assert error["code"] == "busy" and "--max-streams" in error["message"]
            with server.connect() as refused:
                refused.send(json.dumps({"type": "start", "language": "en"}))
                receive_all(refused)
                assert refused.close_code == 1013
            client.send(speech.tobytes())
            client.send('{"type": "end"}')
            assert texts(receive_all(client))
        assert texts(server.recognize(blocks(speech), language="en"))


def test_overloaded_server_refuses_new_streams(model, speech):
    with run_server(model, Limits(max_load=1e-9)) as server, server.connect() as client:
        client.send(json.dumps({"type": "start", "language": "en"}))
        client.send(speech.tobytes())
        while json.loads(client.recv())["type"] != "final":
            pass
        error, *_ = server.recognize([], language="en")
        assert error["code"] == "busy" and "--max-load" in error["message"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (limits(max_stream_seconds=1.0), "--max-stream-seconds"),
        (limits(max_stream_mb=0.05), "--max-stream-mb"),
        (limits(idle_timeout=1.0), "--idle-timeout"),
    ],
)
def test_stream_that_exceeds_a_limit_ends_with_its_results(model, speech, option, message):
    with run_server(model, option) as server, server.connect() as client:
        send_all(client, json.dumps({"type": "start", "language": "en"}), *blocks(speech, 9600))
        messages = receive_all(client)
        assert client.close_code == 1008
    assert messages[-2]["code"] == "limit" and message in messages[-2]["message"]
    assert texts(messages)


def test_long_message_closes_the_connection(model):
    with run_server(model, limits(max_message_bytes=1024)) as server, server.connect() as client:
        send_all(client, json.dumps({"type": "start", "language": "en"}), bytes(1025))
        receive_all(client)
        assert client.close_code == 1009 and "1024 bytes (--max-message-bytes)" in client.close_reason


@pytest.mark.parametrize("way", ["header", "message"])
def test_token_is_required(model, tmp_path, speech, way):
    (tmp_path / "token").write_text("secret\n")
    with run_server(model, token_file=tmp_path / "token") as server:

        def recognize(token):
            headers = {"Authorization": f"Bearer {token}"} if way == "header" and token else {}
            with server.connect(additional_headers=headers) as client:
                token_field = {"token": token} if way == "message" else {}
                start = json.dumps({"type": "start", "language": "en"} | token_field)
                send_all(client, start, speech.tobytes(), '{"type": "end"}')
                return receive_all(client), client.close_code

        for wrong in (None, "other"):
            (error,), code = recognize(wrong)
            assert error["code"] == "unauthorized" and code == 1008
        assert texts(recognize("secret")[0])


@pytest.mark.parametrize("path", ["/v1/stream", "/"])
def test_header_that_is_not_ascii_has_a_wrong_token(model, tmp_path, path, caplog):
    (tmp_path / "token").write_text("secret")
    headers = {"Authorization": "Bearer sécret"}
    with run_server(model, token_file=tmp_path / "token") as server:
        with server.connect(path, additional_headers=headers) as client:
            send_all(client, '{"type": "start"}')
            receive_all(client)
        assert client.close_code == 1008
        request = Request(f"http://{server.address}/v1/models", headers=headers)
        with pytest.raises(HTTPError, match="401"):
            urlopen(request, timeout=60)
    assert not caplog.records


@pytest.mark.parametrize("path", ["/v1/stream", "/"])
def test_web_pages_of_other_sites_are_refused(model, path):
    """Browsers let any page open websockets to this machine."""
    with run_server(model, allow_origins="https://example.org") as server:
        with pytest.raises(InvalidStatus) as refused, server.connect(path, origin="https://example.com"):
            pass
        assert refused.value.response.status_code == 403
        for origin in ("https://example.org", f"http://{server.address}"):
            with server.connect(path, origin=origin):
                pass


def test_stream_without_results_in_the_buffer_is_bounded(model, speech):
    """The server stops reading from a client that sends faster than it decodes, and loses nothing."""
    audio = np.tile(speech, 8)
    with run_server(model, limits(max_buffer_seconds=0.5)) as server:
        peak = 0
        with server.connect() as client:
            client.send(json.dumps({"type": "start", "language": "en"}))
            for block in blocks(audio, 3200):
                client.send(block)
                peak = max([peak, *(len(stream.inbox) for stream in list(server.service.streams))])
            client.send('{"type": "end"}')
            messages = receive_all(client)
    assert peak < 20
    assert messages[-1]["duration"] == 24.0


@pytest.mark.parametrize(
    ("audio_format", "rate", "dtype"),
    [
        ("pcm_s16le", 16000, torch.int16),
        ("pcm_s16le", 8000, torch.float32),
        ("pcm_f32le", 16000, torch.float32),
    ],
)
def test_16_bit_samples_are_buffered_in_16_bits(speech, audio_format, rate, dtype):
    decoder = PcmDecoder(audio_format, rate)
    scaled = (speech / np.float32(2**15)).astype("<f4")
    data = (speech if audio_format == "pcm_s16le" else scaled).tobytes()
    parts = [decoder.accept(data[:10001]), decoder.accept(data[10001:]), decoder.flush()]
    parts = [part for part in parts if part.numel() > 0]
    assert all(part.dtype is dtype for part in parts)
    samples = as_float(torch.cat(parts))
    if rate == 16000:
        np.testing.assert_array_equal(samples.numpy(), scaled)
    else:
        assert samples.numel() == pytest.approx(2 * len(speech), abs=10) and samples.abs().max() <= 1
