"""From tokens to what people read: words with their times."""

from collections.abc import Sequence
from dataclasses import dataclass

from icefall_pathways.data.tokenizer import WORD_BOUNDARY, Tokenizer
from icefall_pathways.decoding.streaming import FRAME_SECONDS, Result


@dataclass(frozen=True)
class Word:
    """A word.

    Attributes:
      text: As it is written.
      begin: When its first token was emitted, in seconds from the start of the audio.
      end: When its last token's frame was over.
    """

    text: str
    begin: float
    end: float


@dataclass(frozen=True)
class Text:
    """A result, or the final result of a segment, to be shown.

    Attributes:
      language: Its code; empty where the model has one path for all.
      begin: Of the segment, in seconds.
      end: How far it has been heard.
      text: All of it.
      stable: Its beginning that will not change.
      revised: What was shown before was changed, not only prolonged.
      words: With times.
      final: The segment is over.
    """

    language: str
    begin: float
    end: float
    text: str
    stable: str
    revised: bool
    words: list[Word]
    final: bool


def to_text(result: Result, tokenizer: Tokenizer, nameless: bool = False) -> Text:
    """A result as text; `nameless` where the language that it was opened with means nothing."""
    text, stable = tokenizer.decode([result.tokens, result.tokens[: result.stable]])
    return Text(
        language="" if nameless else result.language,
        begin=round(result.start, 3),
        end=round(result.end, 3),
        text=text,
        stable=stable if text.startswith(stable) else "",
        revised=result.revised,
        words=_words(result.tokens, result.times, tokenizer),
        final=result.is_final,
    )


def _words(tokens: Sequence[int], times: Sequence[float], tokenizer: Tokenizer) -> list[Word]:
    groups: list[list[int]] = []
    for place, token in enumerate(tokens):
        if not groups or tokenizer.symbols[token].startswith(WORD_BOUNDARY):
            groups.append([])
        groups[-1].append(place)
    words = [
        Word(
            text=tokenizer.decode([[tokens[place] for place in group]])[0].strip(),
            begin=round(times[group[0]], 3),
            end=round(times[group[-1]] + FRAME_SECONDS, 3),
        )
        for group in groups
    ]
    return [word for word in words if word.text]
