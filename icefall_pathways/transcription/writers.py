"""Transcript writers: text as it arrives, JSON, and subtitles."""

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TextIO

from icefall_pathways.languages import is_right_to_left
from icefall_pathways.transcription.transcript import Segment, Transcript, Word

# Common subtitle guidelines: at most two lines of 42 characters, shown for at most 7 seconds.
_MAX_LINE_LENGTH, _MAX_LINES, _MAX_SECONDS = 42, 2, 7.0
_MIN_SECONDS = 1.0  # unless the next subtitle starts earlier
_RIGHT_TO_LEFT_EMBEDDING, _END_OF_EMBEDDING = "\u202b", "\u202c"
_ERASE, _DIM, _NORMAL = "\r\x1b[K", "\x1b[2m", "\x1b[0m"


class Writer(ABC):
    """Write the transcript of one source.

    Args:
      out: Destination.
      source: Name of the audio.
    """

    def __init__(self, out: TextIO, source: str) -> None:
        self.out = out
        self.source = source

    @abstractmethod
    def add(self, segment: Segment) -> None:
        """Add the next partial or final result."""

    def close(self, error: str | None) -> None:
        """Finish the transcript; `error` describes why the audio ended early, if it did."""
        self.out.flush()


class TextWriter(Writer):
    """Write one line per segment. On a terminal, also show partial results, with text that may still change dimmed."""

    prefix = ""

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.live = out.isatty()

    def add(self, segment: Segment) -> None:
        """Add the next partial or final result."""
        if self.live:
            self.out.write(_ERASE + ("" if segment.is_final else self._partial_line(segment)))
        if segment.is_final and segment.text:
            self.out.write(f"{self.prefix}{segment.text}\n")
        self.out.flush()

    def _partial_line(self, segment: Segment) -> str:
        stable, text = self.prefix + segment.stable_text, self.prefix + segment.text
        hidden = max(0, len(text) - shutil.get_terminal_size().columns + 1)  # only a single line can be erased
        return stable[hidden:] + _DIM + text[max(len(stable), hidden) :] + _NORMAL


class NamedTextWriter(TextWriter):
    """Write text with the name of the audio before each line, as grep does with several files."""

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.prefix = f"{_printable(source)}: "


class JsonWriter(Writer):
    """Write one JSON object per source: text, language, duration, and segments with words and times in seconds."""

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.results: list[Segment] = []

    def add(self, segment: Segment) -> None:
        """Add the next partial or final result."""
        if segment.is_final:
            self.results.append(segment)

    def close(self, error: str | None) -> None:
        """Write the object, with `error` in it."""
        transcript = Transcript.from_results(self.results)
        content = {
            "source": _printable(self.source),
            "language": transcript.language,
            "seconds": transcript.duration,
            "text": transcript.text,
            "segments": [
                {
                    **_times(segment),
                    "text": segment.text,
                    "words": [
                        {"text": word.text, **_times(word), "confidence": word.confidence} for word in segment.words
                    ],
                }
                for segment in transcript.segments
            ],
            "error": error,
        }
        self.out.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        super().close(error)


def _printable(name: str) -> str:
    """Return a file name with escapes for bytes that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _times(item: Segment | Word) -> dict[str, float]:
    """Return the times for JSON, with the start also under the key of version 0.1."""
    return {"start": item.start, "begin": item.start, "end": item.end}


class SubtitleWriter(Writer):
    """Write subtitles, each as soon as its end is known."""

    separator: str

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.index = 0
        self.pending: list[Word] = []
        self.right_to_left = False
        self.audio_end = 0.0

    def add(self, segment: Segment) -> None:
        """Add the next partial or final result."""
        if segment.is_final:
            self.audio_end = segment.end
            is_rtl = segment.language is not None and is_right_to_left(segment.language)
            for words in subtitles(segment.words):
                self._write_pending(until=words[0].start)
                self.pending, self.right_to_left = words, is_rtl

    def close(self, error: str | None) -> None:
        """Write the last subtitle."""
        self._write_pending(until=self.audio_end)
        super().close(error)

    def _write_pending(self, until: float) -> None:
        """Write the pending subtitle, which must end by time `until`."""
        if not self.pending:
            return
        self.index += 1
        start = self.pending[0].start
        end = min(max(self.pending[-1].end, start + _MIN_SECONDS), until)
        times = f"{format_time(start, self.separator)} --> {format_time(end, self.separator)}"
        text = self._escape(wrap_lines(self.pending))
        self.out.write(f"{self._cue_header()}{times}\n{embed_right_to_left(text) if self.right_to_left else text}\n\n")
        self.out.flush()
        self.pending = []

    def _cue_header(self) -> str:
        return ""

    def _escape(self, text: str) -> str:
        return text


class SrtWriter(SubtitleWriter):
    """Write subtitles in SubRip format."""

    separator = ","

    def _cue_header(self) -> str:
        return f"{self.index}\n"


class VttWriter(SubtitleWriter):
    """Write subtitles in WebVTT format."""

    separator = "."

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        out.write("WEBVTT\n\n")

    def _escape(self, text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


WRITERS: dict[str, type[Writer]] = {"text": TextWriter, "json": JsonWriter, "srt": SrtWriter, "vtt": VttWriter}


def subtitles(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Split the words of a segment into subtitles of readable length."""
    current: list[Word] = []
    for word in words:
        extended = [*current, word]
        too_long = word.end - extended[0].start > _MAX_SECONDS or wrap_lines(extended).count("\n") >= _MAX_LINES
        if current and too_long:
            yield current
            extended = [word]
        current = extended
    if current:
        yield current


def wrap_lines(words: Sequence[Word]) -> str:
    """Join words to text, wrapped at the maximum line length."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word.text) > _MAX_LINE_LENGTH:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word.text
    return "\n".join(lines)


def embed_right_to_left(text: str) -> str:
    """Embed each line of right-to-left text, so that players put the punctuation at its ends on the correct side.

    Most of them assume that lines run from left to right, and do not know the newer isolates.
    """
    return "\n".join(f"{_RIGHT_TO_LEFT_EMBEDDING}{line}{_END_OF_EMBEDDING}" for line in text.split("\n"))


def format_time(seconds: float, separator: str) -> str:
    """Format a time as in 01:02:03,456."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{separator}{milliseconds % 1000:03}"
