"""Transcripts as text, JSON and subtitles."""

import io
import json

from icefall_pathways.transcription.transcript import Segment, Transcript, Word
from icefall_pathways.transcription.writers import (
    JsonWriter,
    NamedTextWriter,
    SrtWriter,
    TextWriter,
    VttWriter,
    format_time,
)


def _segment(text, start=0.0, is_final=True, stable_text="", pace=0.5, language="en"):
    words = [
        Word(word, start + pace * i, start + pace * i + 0.3, confidence=0.9) for i, word in enumerate(text.split())
    ]
    end = start + pace * len(words)
    return Segment(language, start, end, text, stable_text or text * is_final, False, words, is_final, is_last=False)


def _write(writer_class, *segments, error=None):
    out = io.StringIO()
    writer = writer_class(out, "speech.wav")
    for segment in segments:
        writer.add(segment)
    writer.close(error)
    return out.getvalue()


def test_text_writer_writes_one_line_per_final_segment():
    results = [_segment("hello wor", is_final=False), _segment("hello world"), _segment(""), _segment("and more", 5)]
    assert _write(TextWriter, *results) == "hello world\nand more\n"


def test_names_stand_before_final_and_partial_lines_of_several_files(monkeypatch):
    assert _write(NamedTextWriter, _segment("hello"), _segment("more", 5)) == "speech.wav: hello\nspeech.wav: more\n"
    monkeypatch.setenv("COLUMNS", "12")
    assert _terminal_output(
        _segment("hello wor", is_final=False, stable_text="hello"), writer_class=NamedTextWriter
    ) == ("\r\x1b[K: hello\x1b[2m wor\x1b[0m")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _terminal_output(*segments, writer_class=TextWriter):
    terminal = _Terminal()
    writer = writer_class(terminal, "mic")
    for segment in segments:
        writer.add(segment)
    return terminal.getvalue()


def test_terminal_shows_unstable_text_dim(monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    written = _terminal_output(_segment("hello wor", is_final=False, stable_text="hello"), _segment("hello world"))
    assert written == "\r\x1b[Khello\x1b[2m wor\x1b[0m\r\x1b[Khello world\n"
    # A line wider than the terminal could not be erased, so only its end is shown.
    long = _terminal_output(_segment("one two three four", is_final=False, stable_text="one two thr"))
    assert long == "\r\x1b[K thr\x1b[2mee four\x1b[0m"
    assert (
        _terminal_output(_segment("one two three four", is_final=False, stable_text="one"))
        == "\r\x1b[K\x1b[2m three four\x1b[0m"
    )


def test_json_writer_writes_segments_words_and_error():
    content = json.loads(
        _write(JsonWriter, _segment("un", is_final=False), _segment("un été"), _segment("puis", 4.0), error="cut")
    )
    assert content["text"] == "un été puis"
    assert (content["source"], content["language"], content["seconds"], content["error"]) == (
        "speech.wav",
        "en",
        4.5,
        "cut",
    )
    assert [segment["text"] for segment in content["segments"]] == ["un été", "puis"]
    assert content["segments"][0]["words"][1] == {
        "text": "été",
        "start": 0.5,
        "begin": 0.5,
        "end": 0.8,
        "confidence": 0.9,
    }
    assert json.loads(_write(JsonWriter))["segments"] == []


def test_transcript_joins_segments_with_text():
    transcript = Transcript.from_results([_segment("a b"), _segment("", 2.0), _segment("c", 3.0)])
    assert (transcript.text, transcript.language, transcript.duration) == ("a b c", "en", 3.5)
    assert [word.text for word in transcript.words] == ["a", "b", "c"]
    assert len(transcript.segments) == 2
    assert Transcript.from_results([]) == Transcript(None, 0.0, [])


def test_srt_and_vtt_differ_in_numbers_separators_and_escapes():
    segments = [_segment("hello", is_final=False), _segment("hello world"), _segment("a<b & c", 3661.0)]
    assert _write(SrtWriter, *segments) == (
        "1\n00:00:00,000 --> 00:00:01,000\nhello world\n\n2\n01:01:01,000 --> 01:01:02,300\na<b & c\n\n"
    )
    assert _write(VttWriter, *segments).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello world\n\n")
    assert "a&lt;b &amp; c" in _write(VttWriter, *segments)
    assert _write(SrtWriter) == ""


def test_long_segments_are_split_into_ordered_subtitles():
    words = " ".join(f"word{i}" for i in range(60))
    blocks = _write(SrtWriter, _segment(words, pace=0.2), _segment("end", 12.0)).strip().split("\n\n")
    assert len(blocks) > 3
    ends = []
    for index, block in enumerate(blocks, start=1):
        head, times, *lines = block.split("\n")
        assert int(head) == index
        assert 1 <= len(lines) <= 2
        assert max(map(len, lines)) <= 42
        cue_start, cue_end = times.split(" --> ")
        assert ends == [] or ends[-1] <= cue_start < cue_end
        ends.append(cue_end)
    assert " ".join(" ".join(block.split("\n")[2:]) for block in blocks) == f"{words} end"
    slow = _write(SrtWriter, _segment("a b c d e", pace=3.0)).strip().split("\n\n")
    assert len(slow) == 2


def test_time_rounds_up_to_the_next_minute():
    assert format_time(59.9996, ",") == "00:01:00,000"
    assert format_time(10807.25, ".") == "03:00:07.250"


def test_lines_of_right_to_left_subtitles_are_embedded():
    text = "שלום עולם זה טקסט ארוך מאוד שנכתב בשתי שורות, נכון?"
    for writer, header in ((SrtWriter, "1\n"), (VttWriter, "WEBVTT\n\n")):
        hebrew = _write(writer, _segment(text, pace=0.2, language="he"))
        assert hebrew.startswith(header) and hebrew.count("\u202b") == hebrew.count("\u202c") == 2
        first, second = hebrew.strip().split("\n")[-2:]
        assert first.startswith("\u202bשלום") and second.endswith("נכון?\u202c")
        assert hebrew.replace("\u202b", "").replace("\u202c", "") == _write(writer, _segment(text, pace=0.2))
    assert "\u202b" not in _write(JsonWriter, _segment(text, language="he")), "text is stored in logical order"
