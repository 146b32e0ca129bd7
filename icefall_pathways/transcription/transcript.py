"""Transcripts: recognized tokens as words with times, in segments."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from icefall_pathways.data.tokenizer import WORD_BOUNDARY, Tokenizer
from icefall_pathways.decoding.streaming import FRAME_SECONDS, Result

# Models emit the last token of a word before its end. With the demo's model, the end of the speech, as Silero finds it,
# follows 0.3 s later in the median, and within 0.4 s in three quarters of all regions.
_MAX_TAIL_SECONDS = 0.4


@dataclass(frozen=True)
class Word:
    """A word with its times.

    Attributes:
      text: The word.
      start: Time at which its first token is emitted, in seconds from the start of the audio.
      end: End of the word in seconds, see `word_times`; at most the start of the next word.
      confidence: Geometric mean of the probabilities of its tokens, each given the tokens before it in the frame that
        emits it; None if the search does not offer them. Its last digit may depend on the size of batches.
    """

    text: str
    start: float
    end: float
    confidence: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Segment:
    """The text of one segment: a partial result while audio arrives, then the final result.

    Attributes:
      language: Language code; None if the model is dense and no language was requested.
      start: Start of the segment, in seconds from the start of the audio.
      end: End of the decoded audio, in seconds from the start of the audio; at most the start of the next segment.
      text: Text of the segment.
      stable_text: Leading part of `text` that later results of this segment do not change.
      revised: The previous result was changed, not only extended.
      words: Words of `text` with their times.
      is_final: The segment is complete.
      is_last: The audio has ended; no further result follows.
      speech_seconds: Seconds of speech in the audio so far; without voice activity detection, all of it.
    """

    language: str | None
    start: float
    end: float
    text: str
    stable_text: str
    revised: bool
    words: list[Word]
    is_final: bool
    is_last: bool
    speech_seconds: float = field(default=0.0, compare=False)  # depends on how much audio has arrived


@dataclass(frozen=True)
class Transcript:
    """The transcript of one recording or stream.

    Attributes:
      language: Language code; None if the model is dense and no language was requested, or if the language has not
        been identified yet.
      duration: Seconds of audio.
      segments: Segments that contain text, in order of time.
      speech_seconds: Seconds of it that contain speech; without voice activity detection, all of it.
    """

    language: str | None
    duration: float
    segments: list[Segment]
    speech_seconds: float = 0.0

    @classmethod
    def from_results(cls, results: Iterable[Segment]) -> "Transcript":
        """Assemble a transcript from the results of a stream, in order: final ones, then at most one partial one."""
        results = list(results)
        return cls(
            language=results[-1].language if results else None,
            duration=results[-1].end if results else 0.0,
            segments=[segment for segment in results if segment.text],
            speech_seconds=results[-1].speech_seconds if results else 0.0,
        )

    @property
    def text(self) -> str:
        """Text of all segments, separated by spaces."""
        return " ".join(segment.text for segment in self.segments)

    @property
    def words(self) -> list[Word]:
        """Words of all segments."""
        return [word for segment in self.segments for word in segment.words]


def no_speech_note(last: Segment) -> str | None:
    """Return a remark if voice activity detection found no speech in audio, from its last segment."""
    if last.speech_seconds > 0 or last.end == 0:
        return None
    return f'no speech detected in {last.end:.1f} s of audio; --vad none (in Python: vad="none") decodes all of it'


def to_segment(result: Result, tokenizer: Tokenizer, language: str | None, with_words: bool = True) -> Segment:
    """Convert the tokens of a recognition result to text.

    Args:
      result: The result.
      tokenizer: The tokenizer of the model.
      language: The language code to report.
      with_words: Find the words, which take most of the time of the conversion.
    """
    text, stable_text = tokenizer.decode([result.tokens, result.tokens[: result.stable]])
    return Segment(
        language=language,
        start=round(result.start, 3),
        end=round(result.end, 3),
        text=text,
        stable_text=stable_text if text.startswith(stable_text) else "",
        revised=result.revised,
        words=_words(result, tokenizer) if with_words else [],
        is_final=result.is_final,
        is_last=result.is_last,
        speech_seconds=round(result.speech_seconds, 3),
    )


def mean_log_prob(log_probs: Sequence[float]) -> float | None:
    """Return the mean of log-probabilities; None if there are none, or if they are unknown (NaN)."""
    mean = sum(log_probs) / len(log_probs) if log_probs else math.nan
    return None if math.isnan(mean) else mean


def _confidence(log_probs: Sequence[float]) -> float | None:
    """Return the geometric mean of probabilities, with digits that hardly depend on the size of batches."""
    mean = mean_log_prob(log_probs)
    return None if mean is None else round(math.exp(mean), 3)


def _words(result: Result, tokenizer: Tokenizer) -> list[Word]:
    tokens, times = result.tokens, result.times
    groups: list[list[int]] = []
    for index, token in enumerate(tokens):
        if not groups or tokenizer.symbols[token].startswith(WORD_BOUNDARY):
            groups.append([])
        groups[-1].append(index)
    texts = [tokenizer.decode([[tokens[index] for index in group]])[0].strip() for group in groups]
    groups, texts = [group for group, text in zip(groups, texts, strict=True) if text], list(filter(None, texts))
    spans = word_times([(times[group[0]], times[group[-1]]) for group in groups], result.speech_end, result.end)
    return [
        Word(text, round(start, 3), round(end, 3), _confidence([result.log_probs[index] for index in group]))
        for text, (start, end), group in zip(texts, spans, groups, strict=True)
    ]


def word_times(
    emissions: Sequence[tuple[float, float]], speech_end: float, segment_end: float
) -> list[tuple[float, float]]:
    """Return the start and the end of words, of which only the emission of their tokens is known.

    A word starts when its first token is emitted. It ends when the next word starts, but not more than 0.4 s after the
    frame that emits its last token, nor after the end of the speech, unless that is before the end of this frame. Words
    do not overlap, and none ends after the segment.

    Args:
      emissions: Start of the frames that emit the first and the last token of each word, in seconds, increasing.
      speech_end: End of the speech in seconds; infinity if it is unknown.
      segment_end: End of the segment in seconds.
    """
    spans = []
    for (first, last), (next_start, _) in pairwise([*emissions, (segment_end, segment_end)]):
        emitted = last + FRAME_SECONDS
        end = min(max(emitted, min(emitted + _MAX_TAIL_SECONDS, speech_end)), next_start, segment_end)
        spans.append((min(first, segment_end), end))
    return spans
