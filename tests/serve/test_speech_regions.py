"""Voice activity detection in the server: the results of the Python interface, and one decision per region."""

import json

import numpy as np
import pytest
import torch
from running_server import blocks, load_model, receive_all, run_server, send_all
from window_scorer import WindowScorer

from icefall_pathways import Pathways
from icefall_pathways.decoding.streaming import voice_activity
from icefall_pathways.serve.sessions import SpeechSession


def is_loud(window):
    """Score a window by its level, since the audio of these tests is noise."""
    return float(np.abs(window).max() > 0.05)


@pytest.fixture(scope="module", autouse=True)
def _scorer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice_activity, "Silero", lambda: WindowScorer(is_loud))
        yield


@pytest.fixture(scope="module")
def vad_model(served_dir, _scorer):
    return load_model(served_dir, vad="silero")


@pytest.fixture(scope="module")
def vad_server(vad_model):
    with run_server(vad_model) as running:
        yield running


@pytest.fixture(scope="module")
def pauses(speech):
    """Return three regions of speech with quiet noise of several seconds between them, and at both ends."""
    quiet = (np.random.default_rng(1).standard_normal(40000) * 30).astype("<i2")
    return np.concatenate([quiet, speech[:20000], quiet, quiet, speech[20000:], quiet, speech[:9000], quiet[:9999]])


@pytest.mark.parametrize("size", [3200, 64001])
@pytest.mark.parametrize("language", ["en", "nl"])
def test_results_equal_those_of_the_python_interface(vad_server, served_dir, pauses, language, size):
    asr = Pathways.from_pretrained(served_dir, engine="eager", rule2_min_trailing_silence=0.2, vad="silero")
    expected = asr.transcribe(pauses, language=language)
    messages = vad_server.recognize(blocks(pauses, size), language=language)
    finals = [message for message in messages if message["type"] == "final" and message["text"]]
    assert len(finals) >= 3
    assert [(m["text"], m["start"], m["end"]) for m in finals] == [(s.text, s.start, s.end) for s in expected.segments]
    words = [(word["text"], word["start"], word["end"]) for message in finals for word in message["words"]]
    assert words == [(word.text, word.start, word.end) for word in expected.words]
    assert messages[-1]["duration"] == pytest.approx(len(pauses) / 16000, abs=1e-3)


def test_language_is_identified_in_each_region(vad_server, pauses):
    messages = vad_server.recognize(blocks(pauses), language="auto")
    decided = [message for message in messages if message["type"] == "language"]
    finals = {message["segment"]: message for message in messages if message["type"] == "final" and message["text"]}
    assert len(decided) >= 3 and {message["segment"] for message in decided} >= set(finals)
    for decision in decided:
        final = finals.get(decision["segment"])
        assert final is None or final["start"] < decision["time"] <= final["end"] + 0.1


@pytest.mark.parametrize("num_regions", [0, 1, 2])
def test_language_of_a_region_that_is_too_short_is_identified_at_its_end(vad_server, speech, num_regions):
    """The recognizer has opened the streams of the next region by then."""
    region, quiet = speech[2000:4000], np.zeros(40000, "<i2")
    audio = np.concatenate([*[quiet, region] * num_regions, quiet])
    ready, *results, ended = vad_server.recognize(blocks(audio), language="auto")
    assert (ready["type"], ended["type"]) == ("ready", "ended")
    finals = [message for message in results if message["type"] == "final"]
    assert len(finals) > num_regions
    kinds = [("language", "final") if final["text"] else ("final",) for final in finals]
    expected = [(kind, index) for index, segment in enumerate(kinds) for kind in segment]
    assert [(message["type"], message["segment"]) for message in results if message["type"] != "partial"] == expected
    assert all((final["language"] is None) == (final["text"] == "") for final in finals)


def test_language_changes_in_silence(vad_server, pauses):
    """From the next region on, with the results that it has in a stream of that language."""
    audio = blocks(pauses)
    changed, english, dutch = (
        [m for m in vad_server.recognize(audio, changes, language=code) if m["type"] == "final" and m["text"]]
        for code, changes in (("en", {60: "nl"}), ("en", {}), ("nl", {}))  # 60: in the second pause
    )
    change = (40000 + 20000 + 40000) / 16000
    assert changed[0] == english[0] and changed[0]["end"] < change
    later = [(m["text"], m["start"], m["end"], m["language"]) for m in changed if m["start"] > change]
    assert later == [(m["text"], m["start"], m["end"], m["language"]) for m in dutch if m["start"] > change]
    assert later


def test_failure_of_voice_activity_detection_ends_only_its_stream(served_dir, pauses, monkeypatch):
    """Windows of several streams are scored together."""

    def fail_if_loud(window):
        if np.abs(window).max() > 0.9:
            raise RuntimeError("broken")
        return is_loud(window)

    monkeypatch.setattr(voice_activity, "Silero", lambda: WindowScorer(fail_if_loud))
    loud = np.clip(pauses.astype(np.int32) * 10, -32768, 32767).astype("<i2")
    with run_server(load_model(served_dir, vad="silero")) as server:
        alone = server.recognize(blocks(pauses), language="en", partial_results=False)
        with server.connect() as good, server.connect() as bad:
            for client in (good, bad):
                client.send(json.dumps({"type": "start", "language": "en", "partial_results": False}))
            for good_block, bad_block in zip(blocks(pauses, 2000), blocks(loud, 2000), strict=True):
                send_all(bad, bad_block)
                good.send(good_block)
            good.send('{"type": "end"}')
            assert receive_all(bad)[-2]["code"] == "internal"
            assert receive_all(good) == alone


def test_silence_is_not_decoded(vad_server, pauses):
    messages = vad_server.recognize(blocks(pauses[:38000]), language="auto")
    assert [message["type"] for message in messages] == ["ready", "final", "ended"]
    assert messages[-2]["text"] == "" and messages[-1]["duration"] == 38000 / 16000


def test_repetition_of_a_chunk_after_a_failure_changes_nothing(vad_model, pauses):
    """Also where a region ends: the batcher repeats the chunks of the others if one stream of a batch fails."""

    def events(repeats):
        session = SpeechSession(vad_model, vad_model.recognizer, "en")
        new_events = []
        for block in torch.from_numpy(pauses / np.float32(2**15)).split(30000):
            session.accept(block)
            while session.is_ready:
                for _ in range(repeats):
                    snapshot = session.save()
                    vad_model.recognizer.advance([session.inner])
                    SpeechSession.restore(snapshot)
                ((_, result),) = vad_model.recognizer.advance([session.inner])
                new_events += session.events(result)
        return new_events

    assert len(events(0)) > 3
    assert events(1) == events(0)
