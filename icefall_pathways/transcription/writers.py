"""Ways of writing transcripts: text as it comes, JSON, and subtitles."""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from icefall_pathways.transcription.words import Text, Word

# What subtitlers agree on: two lines of 42 characters, read in at most 7 seconds.
_LINE, _LINES, _LONGEST = 42, 2, 7.0
_SHORTEST = 1.0  # seconds for which a subtitle stays, if the next one lets it
_ERASE, _DIM, _NORMAL = "\r\x1b[K", "\x1b[2m", "\x1b[0m"


class Writer(ABC):
    """Writes the transcript of one source.

    Args:
      out: Where it goes.
      source: What the audio is called.
    """

    def __init__(self, out: TextIO, source: str) -> None:
        self.out = out
        self.source = source

    @abstractmethod
    def add(self, text: Text) -> None:
        """Take the next result."""

    def close(self, error: str | None) -> None:
        """Tell that nothing more comes, and what was wrong with the audio."""
        self.out.flush()


class TextWriter(Writer):
    """A line per segment. On a terminal the line grows while somebody speaks, and what may yet change is dim."""

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.live = out.isatty()

    def add(self, text: Text) -> None:
        """Take the next result."""
        if self.live:
            self.out.write(_ERASE + ("" if text.final else self._growing(text)))
        if text.final and text.text:
            self.out.write(f"{text.text}\n")
        self.out.flush()

    def _growing(self, text: Text) -> str:
        hidden = max(0, len(text.text) - shutil.get_terminal_size().columns + 1)  # what is in one line can be erased
        return text.stable[hidden:] + _DIM + text.text[max(len(text.stable), hidden) :] + _NORMAL


class JsonWriter(Writer):
    """One object at the end: the text, and segments with words and times."""

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.segments: list[dict[str, Any]] = []
        self.seconds, self.language = 0.0, ""

    def add(self, text: Text) -> None:
        """Take the next result."""
        self.seconds, self.language = text.end, text.language
        if text.final and text.text:
            words = [asdict(word) for word in text.words]
            self.segments.append({"begin": text.begin, "end": text.end, "text": text.text, "words": words})

    def close(self, error: str | None) -> None:
        """Write the object; `error` is in it."""
        transcript = {
            "source": self.source,
            "language": self.language or None,
            "seconds": self.seconds,
            "text": " ".join(segment["text"] for segment in self.segments),
            "segments": self.segments,
            "error": error,
        }
        self.out.write(json.dumps(transcript, ensure_ascii=False, indent=2) + "\n")
        super().close(error)


class SubtitleWriter(Writer):
    """Subtitles, each written when it is over."""

    separator: str

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        self.number = 0
        self.last: list[Word] = []

    def add(self, text: Text) -> None:
        """Take the next result."""
        if text.final:
            for words in subtitles(text.words):
                self._write(until=words[0].begin)
                self.last = words

    def close(self, error: str | None) -> None:
        """Write the last one."""
        self._write(until=float("inf"))
        super().close(error)

    def _write(self, until: float) -> None:
        """Write the subtitle that waits; it goes before `until`."""
        if not self.last:
            return
        self.number += 1
        begin = self.last[0].begin
        end = min(max(self.last[-1].end, begin + _SHORTEST), until)
        times = f"{clock(begin, self.separator)} --> {clock(end, self.separator)}"
        self.out.write(f"{self._head()}{times}\n{self._escape(layout(self.last))}\n\n")
        self.out.flush()
        self.last = []

    def _head(self) -> str:
        return ""

    def _escape(self, text: str) -> str:
        return text


class SrtWriter(SubtitleWriter):
    """SubRip."""

    separator = ","

    def _head(self) -> str:
        return f"{self.number}\n"


class VttWriter(SubtitleWriter):
    """WebVTT."""

    separator = "."

    def __init__(self, out: TextIO, source: str) -> None:
        super().__init__(out, source)
        out.write("WEBVTT\n\n")

    def _escape(self, text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


WRITERS: dict[str, type[Writer]] = {"text": TextWriter, "json": JsonWriter, "srt": SrtWriter, "vtt": VttWriter}


def subtitles(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Cut a segment's words into subtitles that can be read."""
    current: list[Word] = []
    for word in words:
        longer = [*current, word]
        if current and (word.end - current[0].begin > _LONGEST or layout(longer).count("\n") >= _LINES):
            yield current
            longer = [word]
        current = longer
    if current:
        yield current


def layout(words: Sequence[Word]) -> str:
    """The words in lines."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word.text) > _LINE:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word.text
    return "\n".join(lines)


def clock(seconds: float, separator: str) -> str:
    """Such as 01:02:03,456."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{separator}{milliseconds % 1000:03}"
