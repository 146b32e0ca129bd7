"""The websocket protocol: results equal those of the Python interface, and errors say what was expected."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from running_server import blocks, load_model, receive_all, run_server, send_all, texts
from websockets.exceptions import ConnectionClosed

from icefall_pathways import Pathways
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.experiment import layout


@pytest.fixture(scope="module")
def asr(served_dir):
    return Pathways.from_pretrained(served_dir, engine="eager", rule2_min_trailing_silence=0.2, vad="none")


@pytest.mark.parametrize("size", [3200, 1001, 64000])
@pytest.mark.parametrize("language", ["en", "nl"])
def test_results_equal_those_of_the_python_interface(server, asr, speech, language, size):
    """Also if messages split samples."""
    messages = server.recognize(blocks(speech, size), language=language)
    expected = asr.transcribe(speech, language=language)
    assert texts(messages) == [segment.text for segment in expected.segments]
    words = [word for message in messages if message["type"] == "final" for word in message["words"]]
    assert [(w["text"], w["start"], w["end"]) for w in words] == [(w.text, w.start, w.end) for w in expected.words]
    assert [w["confidence"] for w in words] == pytest.approx([w.confidence for w in expected.words], abs=2e-3)
    assert all(0 < w["confidence"] < 1 for w in words)
    assert messages[-1] == {"type": "ended", "reason": "end", "duration": 3.0, "notes": []}
    assert {message["language"] for message in messages if "text" in message} == {language}


def test_partial_results_grow_and_their_stable_text_does_not_change(server, speech):
    messages = server.recognize(blocks(speech), language="en")
    assert messages[0]["type"] == "ready" and messages[0]["languages"] == ["en", "nl"]
    stable, segment = "", 0
    for message in messages[1:-1]:
        stable = stable if message["segment"] == segment else ""
        segment = message["segment"]
        assert message["text"].startswith(stable)
        assert message["stable_text"].startswith(stable)
        stable = message["stable_text"]
    assert sum(message["type"] == "partial" for message in messages) > 2


@pytest.mark.filterwarnings("ignore:samples. a sample rate of 8000 Hz")
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_formats_are_converted(server, asr, speech, rate):
    samples = np.interp(np.arange(0, 3, 1 / rate), np.arange(len(speech)) / 16000, speech / 2**15).astype("<f4")
    messages = server.recognize(
        blocks(samples, 8192), format="pcm_f32le", sample_rate=rate, language="en", words="none", partial_results=False
    )
    expected = asr.transcribe(samples, language="en", sample_rate=rate)
    assert texts(messages) == [segment.text for segment in expected.segments]
    assert all(message["words"] is None for message in messages if message["type"] == "final")
    assert not any(message["type"] == "partial" for message in messages)


def test_low_sample_rate_is_reported_to_the_client_and_once_by_the_server(model, capsys):
    with run_server(model) as server:
        for rate, count in ((16000, 0), (8000, 1), (8000, 1)):
            *_, ended = server.recognize([bytes(8000)], sample_rate=rate, language="en")
            assert len(ended["notes"]) == count
    assert "frequencies above 4000 Hz are missing" in ended["notes"][0]
    assert capsys.readouterr().out.count("note: audio of a websocket client: a sample rate of 8000 Hz, below") == 1


def test_language_is_identified_again_in_each_segment(server, speech):
    """And every decision is reported before the first result of its segment."""
    messages = server.recognize(blocks(speech), language="auto")
    decided = [message for message in messages if message["type"] == "language"]
    assert len(decided) >= 2
    for decision in decided:
        assert decision["confidence"] == decision["probabilities"][decision["language"]]
        assert sum(decision["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    seen = set()
    for message in messages:
        if message["type"] == "language":
            seen.add(message["segment"])
            latest = message
        elif message["type"] in ("partial", "final"):
            assert message["segment"] in seen or not message["text"]
            expected = latest if message["segment"] in seen else {"language": None, "confidence": None}
            assert message["language"] == expected["language"]
            assert message["language_confidence"] == expected["confidence"]


def test_language_of_short_audio_is_decided_at_its_end(served_dir, speech, tmp_path):
    """With a model that waits for more audio."""
    folder = shutil.copytree(served_dir, tmp_path / "model")
    replace(LanguageIdModel.load(layout.language_id_file(folder)), seconds=100.0).save(layout.language_id_file(folder))
    with run_server(load_model(folder)) as server:
        ready, decision, final, ended = server.recognize([speech.tobytes()], language="auto")
    assert (ready["type"], decision["type"], final["type"], ended["type"]) == ("ready", "language", "final", "ended")
    assert final["text"] and final["language"] == decision["language"]
    assert final["language_confidence"] == decision["confidence"]


@pytest.mark.parametrize("count", [0, 100, 32000])
def test_language_of_silence_is_not_decided(server, count):
    ready, final, ended = server.recognize([bytes(2 * count)], language="auto")
    assert (ready["type"], final["type"], ended["type"]) == ("ready", "final", "ended")
    assert (final["text"], final["language"], final["language_confidence"]) == ("", None, None)


def test_silence_after_speech_decides_nothing(server, speech):
    messages = server.recognize([np.concatenate([speech, np.zeros(64000, "<i2")]).tobytes()], language="auto")
    decided = {message["segment"]: message["language"] for message in messages if message["type"] == "language"}
    finals = [message for message in messages if message["type"] == "final"]
    assert [message["language"] for message in finals] == [decided.get(message["segment"]) for message in finals]
    assert decided and finals[-1]["text"] == "" and finals[-1]["language"] is None


@pytest.mark.parametrize("seconds", [0.2, 0.4])
def test_language_is_identified_of_a_segment_that_ends_within_its_first_word(served_dir, seconds):
    """The next segment starts with that word, in the same language."""
    model = load_model(served_dir)
    model.recognizer.endpoints = replace(model.recognizer.endpoints, rule3_min_utterance_length=seconds)
    loud = (np.random.default_rng(1).standard_normal(9600) * 3000).astype("<i2")
    with run_server(model) as server:
        ready, decision, first, *results, ended = server.recognize([*blocks(loud), bytes(19200)], language="auto")
    assert (ready["type"], decision["type"], first["type"], ended["type"]) == ("ready", "language", "final", "ended")
    assert first["text"] == "" and "".join(texts(results))
    assert {result["language"] for result in (first, results[0])} == {decision["language"]}


def test_talk_changes_its_language(served_dir, speech, tmp_path):
    """With a model that takes loud noise for Dutch, and quiet noise for English."""
    folder = shutil.copytree(served_dir, tmp_path / "model")
    unigrams = LanguageIdModel.load(layout.language_id_file(folder)).unigrams
    identifier = LanguageIdModel({"search_per_frame": 5.0}, {"en": -1.36, "nl": 0.0}, unigrams, seconds=0.5)
    identifier.save(layout.language_id_file(folder))
    loud, pause = speech[:25600], np.zeros(16000, "<i2")
    quiet = loud // 10
    with run_server(load_model(folder)) as server:
        messages = server.recognize(blocks(np.concatenate([quiet, pause, loud])), language="auto")
    decided = [message["language"] for message in messages if message["type"] == "language"]
    final = [message["language"] for message in messages if message["type"] == "final" and message["text"]]
    for languages in (decided, final):
        assert [language for language, _ in groupby(languages)] == ["en", "nl"]


def test_no_audio_is_lost_where_the_language_changes(server, speech):
    audio = blocks(speech)
    messages = server.recognize(audio, {2: "dutch"}, language="en")  # 2: in the first segment
    finals = [message for message in messages if message["type"] == "final" and message["text"]]
    assert [message["language"] for message in finals] == ["en", "nl"]
    reference = server.recognize(audio, language="en")
    assert finals[0] == next(message for message in reference if message["type"] == "final")
    assert finals[1]["start"] == finals[0]["end"] and finals[1]["end"] == messages[-1]["duration"] == 3.0


def test_language_can_be_set_before_the_first_audio(server, speech):
    with server.connect() as client:
        client.send(json.dumps({"type": "start", "language": "en"}))
        client.send('{"type": "language", "language": "nl"}')
        for block in blocks(speech):
            client.send(block)
        client.send('{"type": "end"}')
        changed = receive_all(client)
    assert without_partial(changed) == without_partial(server.recognize(blocks(speech), language="nl"))


@pytest.mark.parametrize(
    ("first", "code", "close_code", "text"),
    [
        ("{", "invalid_message", 1007, "Invalid JSON"),
        ('{"type": "stop"}', "invalid_message", 1007, "start, language or end"),
        ('{"type": "end"}', "invalid_message", 1007, "expected start"),
        ('{"type": "start", "version": 2}', "invalid_message", 1007, "start.version"),
        ('{"type": "start", "rate": 16000}', "invalid_message", 1007, "start.rate"),
        ('{"type": "start", "sample_rate": 1}', "invalid_message", 1007, "start.sample_rate"),
        ('{"type": "start", "language": "xx"}', "invalid_request", 1008, "this model supports en, nl and auto"),
        ('{"type": "start", "language": "fr"}', "invalid_request", 1008, "this model supports en, nl and auto"),
        ('{"type": "start", "hotwords": [{"text": "five"}]}', "invalid_request", 1008, "modified_beam_search"),
        (b"\0\0", "invalid_message", 1007, "the first message is binary"),
    ],
)
def test_invalid_first_message_is_answered_with_an_error(server, first, code, close_code, text):
    with server.connect() as client:
        client.send(first)
        error = json.loads(client.recv())
        assert error["type"] == "error" and error["code"] == code and text in error["message"]
        with pytest.raises(ConnectionClosed):
            client.recv()
        assert client.close_code == close_code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{}", "invalid_message"),
        ('{"type": "start"}', "invalid_message"),
        ('{"type": "language", "language": "xx"}', "invalid_request"),
        (np.full(800, np.nan, "<f4").tobytes(), "invalid_audio"),
        (np.full(800, 1e9, "<f4").tobytes(), "invalid_audio"),
    ],
)
def test_later_error_comes_after_the_results_so_far(server, speech, message, code):
    audio = [(speech / 2**15).astype("<f4").tobytes()]
    reference = server.recognize(audio, format="pcm_f32le", language="en")
    with server.connect() as client:
        client.send(json.dumps({"type": "start", "format": "pcm_f32le", "language": "en"}))
        client.send(audio[0])
        client.send(message)
        messages = receive_all(client)
    assert texts(messages) == texts(reference)
    assert messages[-2]["code"] == code and messages[-1]["reason"] == "error"


def test_hotword_makes_its_phrase_appear(served_dir, speech):
    model = load_model(served_dir, decoding_method="modified_beam_search")
    with run_server(model) as server:
        audio = blocks(speech)
        plain, other = (server.recognize(audio, language="en") for _ in range(2))
        boosted = server.recognize(audio, language="en", hotwords=[{"text": "vier", "score": 30.0}])
        invalid = server.recognize([], language="en", hotwords=[{"text": "Ω"}])
    assert without_partial(plain) == without_partial(other)  # partial results depend on the speed of the client
    assert " ".join(texts(boosted)).count("vier") > " ".join(texts(plain)).count("vier")
    assert invalid[0]["code"] == "invalid_request" and "Ω" in invalid[0]["message"]


def test_streams_do_not_depend_on_each_other(server, speech):
    """Streams of mixed languages have the results that each has alone, while others fail."""
    requests = [(speech[: 16000 + 4000 * index], ["en", "nl", "auto"][index % 3]) for index in range(6)]

    def recognize(request):
        samples, language = request
        return without_partial(server.recognize(blocks(samples, 1600), language=language))

    def fail(index):
        with server.connect() as client:
            start = json.dumps({"type": "start", "format": "pcm_f32le", "language": "en"})
            audio = speech[:8000].astype("<f4").tobytes() if index % 2 else b"abc"
            send_all(client, start, audio, "nonsense" if index % 3 else np.full(800, np.nan, "<f4").tobytes())
            client.recv()  # the server is ready; the client leaves without a closing handshake
            client.socket.close()

    alone = [recognize(request) for request in requests]
    with ThreadPoolExecutor(len(requests) + 4) as pool:
        failing = pool.map(fail, range(8))
        assert list(pool.map(recognize, requests)) == alone
        list(failing)


def without_partial(messages):
    """Return the messages that do not depend on the speed of the client, without values that depend on batch sizes."""
    finals = [message for message in messages if message["type"] != "partial"]
    for word in (word for message in finals for word in message.get("words") or ()):
        del word["confidence"]
    return finals
