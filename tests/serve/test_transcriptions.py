"""OpenAI's transcription API, used with OpenAI's client."""

import errno
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from encoded_audio import encode
from running_server import ANY_LOAD, run_server, wait_until

from icefall_pathways import Pathways
from icefall_pathways.serve import transcriptions as transcriptions_module
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.streams import ClientStream


def make_client(server, token="unused"):
    return openai.OpenAI(base_url=f"http://{server.address}/v1", api_key=token, max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    return make_client(server)


@pytest.fixture(scope="module")
def upload(speech):
    return ("../../etc/speech.flac", encode(speech[:, None], "flac", 16000))


@pytest.fixture(scope="module")
def expected(served_dir, speech):
    asr = Pathways.from_pretrained(served_dir, engine="eager", rule2_min_trailing_silence=0.2, vad="none")
    return asr.transcribe(speech, language="en")


def test_every_format_has_the_text_of_the_python_interface(client, upload, expected):
    def create(response_format, **options):
        return client.audio.transcriptions.create(
            model="any", file=upload, language="en", response_format=response_format, **options
        )

    assert create("json").text == expected.text
    assert create("text") == expected.text + "\n"
    assert create("vtt").startswith("WEBVTT\n\n00:00:00")
    lines = create("srt").split("\n")
    assert lines[0] == "1" and " --> " in lines[1]
    assert "".join(lines).count(" --> ") >= 1
    verbose = create("verbose_json", timestamp_granularities=["word", "segment"])
    assert (verbose.text, verbose.language, verbose.duration) == (expected.text, "english", 3.0)
    assert [(w.word, w.start, w.end) for w in verbose.words] == [(w.text, w.start, w.end) for w in expected.words]
    assert [(s.text, s.start, s.end) for s in verbose.segments] == [(s.text, s.start, s.end) for s in expected.segments]
    assert create("verbose_json").words is None


def test_low_sample_rate_is_reported(client, upload, speech):
    low = ("low.flac", encode(speech[::2, None].copy(), "flac", 8000))
    for response_format in ("json", "verbose_json"):
        for file, count in ((upload, 0), (low, 1)):
            result = client.audio.transcriptions.create(
                model="any", file=file, language="en", response_format=response_format
            )
            assert len(result.notes) == count
    assert "frequencies above 4000 Hz are missing" in result.notes[0]


def test_stream_of_events_adds_up_to_the_text(client, upload, expected):
    events = list(client.audio.transcriptions.create(model="any", file=upload, language="en", stream=True))
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"} and len(events) > 2
    assert "".join(event.delta for event in events[:-1]) == expected.text
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", expected.text)


def run_documented_client(server, path, language):
    """Run the client of the documentation with other values."""
    page = Path(__file__).parents[2] / "docs" / "guide" / "serving.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    values = {"127.0.0.1:6006": server.address, "speech.mp3": str(path), '"fr"': f'"{language}"'}
    for example, value in values.items():
        assert script.count(example) == 1
        script = script.replace(example, value)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_documented_client(server, upload, expected, tmp_path):
    """It prints the text, or the error of the server without a traceback."""
    (tmp_path / "speech").write_bytes(upload[1])
    (tmp_path / "damaged").write_bytes(upload[1][:9000])
    client = run_documented_client(server, tmp_path / "speech", "en")
    assert (client.returncode, client.stdout, client.stderr) == (0, expected.text + "\n", "")
    for name, language, message in (
        ("speech", "xx", "error: language 'xx': this model supports en, nl and auto\n"),
        ("damaged", "en", "damaged"),
        ("missing", "en", "No such file"),
    ):
        client = run_documented_client(server, tmp_path / name, language)
        assert client.returncode != 0 and message in client.stderr and "Traceback" not in client.stderr


def test_language_is_identified_by_default(client, upload):
    verbose = client.audio.transcriptions.create(model="any", file=upload, response_format="verbose_json")
    assert verbose.language == "english"
    assert verbose.segments[0].language_confidence > 0.5


def test_language_of_silence_is_unknown(client):
    silence = ("silence.flac", encode(np.zeros((16000, 1), "<i2"), "flac", 16000))
    verbose = client.audio.transcriptions.create(model="any", file=silence, response_format="verbose_json")
    assert (verbose.language, verbose.text, verbose.segments) == ("unknown", "", [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": ("a.wav", b"no audio" * 100)}, r"the uploaded file: cannot read it \([^)]*\): .*, MP4 or WebM$"),
        ({"file": ("a.wav", b"")}, "the uploaded file: it is empty"),
        ({"language": "xx"}, "this model supports en, nl and auto"),
        ({"response_format": "xml"}, "expected one of json"),
        ({"timestamp_granularities": ["syllable"]}, "expected segment or word"),
    ],
)
def test_invalid_request_is_reported(client, upload, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.audio.transcriptions.create(**{"model": "any", "file": upload, "language": "en"} | options)


def test_damaged_file_is_reported_as_an_event(client, upload):
    with pytest.raises(openai.APIError, match="damaged"):
        list(client.audio.transcriptions.create(model="any", file=upload[1][:9000], language="en", stream=True))


_FORM = "multipart/form-data; boundary=x"
_FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nabc'


@pytest.mark.parametrize(
    ("content", "content_type", "message"),
    [
        (b"", _FORM, "no complete file"),
        (b"--x\r\nnonsense", _FORM, "no complete file"),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--', _FORM, "no complete file"),
        (_FILE, _FORM, "no complete file"),
        (_FILE + b"\r\n--x--", "multipart/form-data", "not a valid multipart form"),
        (b"abc", "audio/wav", "'audio/wav': expected multipart/form-data"),
        (_FILE, "multipart/form-data2; boundary=x", "expected multipart/form-data"),
    ],
)
def test_request_without_a_file_is_reported(server, content, content_type, message):
    headers = {"content-type": content_type}
    response = httpx2.post(f"http://{server.address}/v1/audio/transcriptions", content=content, headers=headers)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_upload_that_is_cut_off_is_no_error_of_the_server(server, client, upload, caplog):
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Type: {_FORM}\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(server.address.split(":")) as raw:
        raw.sendall(head.encode() + _FILE)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(1000):  # until the server has closed the connection
            pass
    assert client.audio.transcriptions.create(model="any", file=upload, language="en").text
    assert not caplog.records


@pytest.mark.parametrize("function", ["starlette.formparsers.SpooledTemporaryFile", "shutil.copyfileobj"])
@pytest.mark.parametrize("stream", [False, True])
def test_full_temporary_folder_ends_the_request(server, client, upload, monkeypatch, caplog, function, stream):
    """While the upload arrives, or when it is complete."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(openai.InternalServerError, match="cannot store the upload") as error:
            client.audio.transcriptions.create(model="any", file=upload, language="en", stream=stream)
    assert error.value.status_code == 507
    assert "No space left on device" in error.value.message and "Traceback" not in caplog.text
    assert "free space in the temporary folder, or set TMPDIR" in caplog.text
    assert not server.service.streams
    assert client.audio.transcriptions.create(model="any", file=upload, language="en").text


def multipart(data, **fields):
    """Return a request for the transcription of a file, as bytes."""
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"
    body = "".join(parts).encode() + file
    head = f"Host: x\r\nContent-Type: {_FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST /v1/audio/transcriptions HTTP/1.1\r\n{head}".encode() + body


@pytest.mark.parametrize("stream", ["true", "false"])
def test_client_that_leaves_frees_its_stream(server, speech, stream, monkeypatch):
    """Its file is not decoded to the end; nor if it leaves before the answer starts."""
    opened, is_gone, decoded = threading.Event(), threading.Event(), []
    store, close = transcriptions_module._store, ClientStream.close

    def store_for_client_that_is_gone(upload):
        opened.set()
        is_gone.wait(60)
        time.sleep(0.5)  # the server notices it
        return store(upload)

    monkeypatch.setattr(transcriptions_module, "_store", store_for_client_that_is_gone)
    monkeypatch.setattr(ClientStream, "close", lambda self: (decoded.append(self.decoded_seconds), close(self)))
    audio = encode(np.tile(speech, 100)[:, None], "flac", 16000)
    with socket.create_connection(server.address.split(":")) as raw:
        raw.sendall(multipart(audio, language="en", stream=stream))
        assert opened.wait(60)
    is_gone.set()
    wait_until(lambda: not server.service.streams)
    assert decoded[0] < 100


@pytest.mark.parametrize("media_type", ["Multipart/Form-Data", "MULTIPART/FORM-DATA ", "multipart/form-data"])
def test_media_type_is_not_case_sensitive(server, upload, media_type):
    body = multipart(upload[1], language="en").partition(b"\r\n\r\n")[2]
    headers = {"content-type": f"{media_type}; boundary=x"}
    answer = httpx2.post(f"http://{server.address}/v1/audio/transcriptions", content=body, headers=headers)
    assert answer.status_code == 200 and answer.json()["text"]


def test_limits_and_token(model, upload, tmp_path):
    (tmp_path / "token").write_text("secret")
    limits = Limits(max_load=ANY_LOAD.max_load, max_upload_mb=0.03, max_streams=1)
    with run_server(model, limits, token_file=tmp_path / "token") as server:
        with pytest.raises(openai.AuthenticationError, match="a wrong token"):
            make_client(server, "other").audio.transcriptions.create(model="any", file=upload)
        client = make_client(server, "secret")
        with pytest.raises(openai.APIStatusError, match="--max-upload-mb") as error:
            client.audio.transcriptions.create(model="any", file=upload)
        assert error.value.status_code == 413
        with server.connect() as stream:
            stream.send(json.dumps({"type": "start", "token": "secret"}))
            stream.recv()
            with pytest.raises(openai.InternalServerError, match="--max-streams") as error:
                client.audio.transcriptions.create(model="any", file=upload)
            assert error.value.status_code == 503 and error.value.response.headers["retry-after"]


def test_models_health_and_metrics(server, client, upload):
    (model,) = client.models.list()
    assert model.id == server.service.model.name and model.languages == ["en", "nl"]
    client.audio.transcriptions.create(model=model.id, file=upload, language="en")
    health = httpx2.get(f"http://{server.address}/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    metrics = httpx2.get(f"http://{server.address}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values['pathways_streams_total{outcome="completed",protocol="http"}']) >= 1
    assert float(values['pathways_audio_seconds_total{protocol="http"}']) >= 3
    assert float(values["pathways_batch_streams_count"]) > 0


def test_health_counts_streams_by_their_current_language(server, speech):
    def counts():
        return httpx2.get(f"http://{server.address}/health").json()["streams_by_language"]

    assert counts() == {}
    with server.connect() as fixed, server.connect() as detected:
        fixed.send('{"type": "start", "language": "nl"}')
        detected.send('{"type": "start", "language": "auto"}')
        fixed.recv(), detected.recv()
        assert counts() == {"nl": 1, "und": 1}
        detected.send(speech.tobytes())
        decision = json.loads(detected.recv())
        assert counts() == dict(Counter(["nl", decision["language"]]))


def test_load_is_zero_when_nothing_is_decoded(server, speech):
    def load():
        lines = httpx2.get(f"http://{server.address}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("pathways_load "))

    server.recognize([speech.tobytes()], language="en")
    wait_until(lambda: load() == 0)


def test_other_web_pages_cannot_read_answers(model):
    for origins, allowed in (("", None), ("https://example.org", "https://example.org")):
        with run_server(model, allow_origins=origins) as server:
            answer = httpx2.get(f"http://{server.address}/health", headers={"origin": "https://example.org"})
            assert answer.headers.get("access-control-allow-origin") == allowed
