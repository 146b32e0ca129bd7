"""Transcripts as text, JSON and subtitles."""

import io
import json

from icefall_pathways.transcription.words import Text, Word
from icefall_pathways.transcription.writers import JsonWriter, SrtWriter, TextWriter, VttWriter, clock


def _text(words, begin=0.0, final=True, stable="", revised=False, pace=0.5):
    timed = [Word(word, begin + pace * i, begin + pace * i + 0.3) for i, word in enumerate(words.split())]
    end = begin + pace * len(timed)
    return Text("en", begin, end, words, stable or words * final, revised, timed, final)


def _write(kind, *texts, error=None):
    out = io.StringIO()
    writer = kind(out, "speech.wav")
    for text in texts:
        writer.add(text)
    writer.close(error)
    return out.getvalue()


def test_text_is_a_line_a_segment():
    partial = _text("hello wor", final=False)
    assert (
        _write(TextWriter, partial, _text("hello world"), _text(""), _text("and more", 5)) == "hello world\nand more\n"
    )


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _live(*texts):
    terminal = _Terminal()
    writer = TextWriter(terminal, "mic")
    for text in texts:
        writer.add(text)
    return terminal.getvalue()


def test_on_a_terminal_what_may_change_is_dim(monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    written = _live(_text("hello wor", final=False, stable="hello"), _text("hello world"))
    assert written == "\r\x1b[Khello\x1b[2m wor\x1b[0m\r\x1b[Khello world\n"
    # Of what is wider than the terminal, and could not be erased, the end is shown.
    long = _live(_text("one two three four", final=False, stable="one two thr"))
    assert long == "\r\x1b[K thr\x1b[2mee four\x1b[0m"
    assert _live(_text("one two three four", final=False, stable="one")) == "\r\x1b[K\x1b[2m three four\x1b[0m"


def test_json():
    found = json.loads(_write(JsonWriter, _text("un", final=False), _text("un été"), _text("puis", 4.0), error="cut"))
    assert found["text"] == "un été puis"
    assert (found["source"], found["language"], found["seconds"], found["error"]) == ("speech.wav", "en", 4.5, "cut")
    assert [segment["text"] for segment in found["segments"]] == ["un été", "puis"]
    assert found["segments"][0]["words"][1] == {"text": "été", "begin": 0.5, "end": 0.8}
    assert json.loads(_write(JsonWriter))["segments"] == []


def test_subtitles():
    texts = [_text("hello", final=False), _text("hello world"), _text("a<b & c", 3661.0)]
    assert _write(SrtWriter, *texts) == (
        "1\n00:00:00,000 --> 00:00:01,000\nhello world\n\n2\n01:01:01,000 --> 01:01:02,300\na<b & c\n\n"
    )
    assert _write(VttWriter, *texts).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello world\n\n")
    assert "a&lt;b &amp; c" in _write(VttWriter, *texts)
    assert _write(SrtWriter) == ""


def test_long_segments_become_several_subtitles_in_order():
    words = " ".join(f"word{i}" for i in range(60))
    blocks = _write(SrtWriter, _text(words, pace=0.2), _text("end", 12.0)).strip().split("\n\n")
    assert len(blocks) > 3
    ends = []
    for number, block in enumerate(blocks, start=1):
        head, times, *lines = block.split("\n")
        assert int(head) == number
        assert 1 <= len(lines) <= 2
        assert max(map(len, lines)) <= 42
        begin, end = times.split(" --> ")
        assert ends == [] or ends[-1] <= begin < end
        ends.append(end)
    assert " ".join(" ".join(block.split("\n")[2:]) for block in blocks) == f"{words} end"
    slow = _write(SrtWriter, _text("a b c d e", pace=3.0)).strip().split("\n\n")
    assert len(slow) == 2


def test_clock_rounds_over():
    assert clock(59.9996, ",") == "00:01:00,000"
    assert clock(10807.25, ".") == "03:00:07.250"
