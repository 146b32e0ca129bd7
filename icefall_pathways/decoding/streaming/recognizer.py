"""Recognition sessions: partial and final results, segments, and language identification."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from torch import Tensor

from icefall_pathways.decoding.streaming.decoder import (
    ANY_LANGUAGE,
    FRAME_SECONDS,
    AudioError,
    Key,
    Source,
    Stream,
    StreamingDecoder,
    push_next,
)
from icefall_pathways.decoding.streaming.endpoint import EndpointConfig
from icefall_pathways.decoding.streaming.session import Session
from icefall_pathways.decoding.streaming.voice_activity import SpeechGate
from icefall_pathways.searches import Hypothesis
from icefall_pathways.searches.base import common_prefix_length


@dataclass(frozen=True)
class Result:
    """Partial or final result of a segment.

    Attributes:
      language: Language of the pathway.
      segment: Index of the segment, from 0.
      start: Start of the segment, in seconds from the start of the stream.
      end: End of the decoded audio, or start of a word that moves to the next segment, in seconds from the start of the
        stream.
      tokens: Token IDs.
      times: Time of each token, in seconds from the start of the stream.
      log_probs: Log-probability of each token, see `Hypothesis.token_log_probs`; NaN if the search does not offer it.
      stable: Number of leading tokens that later results of the segment do not change; all tokens of a final result.
      unchanged: Number of leading tokens that are the same as in the previous result.
      revised: The previous result has different or additional tokens after the unchanged ones.
      is_final: The segment has ended.
      is_last: The session has ended.
      speech_end: End of the speech, in seconds from the start of the stream, if the result ends a region of speech that
        voice activity detection found; infinity otherwise.
      speech_seconds: Seconds of speech in the session so far, all of its audio without voice activity detection.
    """

    language: str
    segment: int
    start: float
    end: float
    tokens: list[int]
    times: list[float]
    log_probs: list[float]
    stable: int
    unchanged: int
    revised: bool
    is_final: bool
    is_last: bool
    speech_end: float
    speech_seconds: float

    @property
    def changed(self) -> bool:
        """The tokens differ from those of the previous result."""
        return self.revised or self.unchanged < len(self.tokens)


class LanguageSelector(Protocol):
    """A function that selects the spoken language among several."""

    def __call__(self, candidates: Sequence[Stream], audio_seconds: float, ended: bool) -> Stream | None:
        """Return the stream of the spoken language, or None to wait for more audio.

        Args:
          candidates: One stream per language, with the same audio.
          audio_seconds: Seconds of audio decoded since the initial silence.
          ended: The audio has ended, so that a stream must be returned.
        """


class Recognizer:
    """Run recognition sessions, which may start and end at any time and have different languages.

    Args:
      decoder: Decodes the streams.
      endpoints: Endpoint detection; None: one segment per session.
      select_language: Identifies languages; needed for sessions in an unknown language.
      is_word_start: Returns whether a token starts a word. If a segment ends in the middle of speech, its last word,
        which may be incomplete, moves to the next segment. None: every token is a word.
      make_gate: Returns the voice activity detection of a new session. A segment ends with each region of speech, and
        the next one starts with the initial state of encoder and search.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        endpoints: EndpointConfig | None = None,
        select_language: LanguageSelector | None = None,
        is_word_start: Callable[[int], bool] | None = None,
        make_gate: Callable[[], SpeechGate | None] = lambda: None,
    ) -> None:
        self.decoder = decoder
        self.endpoints = endpoints
        self.select_language = select_language
        self.is_word_start = is_word_start
        self.make_gate = make_gate

    def open(self, language: str | None = ANY_LANGUAGE) -> Session:
        """Open a session; if the language is None, it is identified from the audio.

        Raises:
          ValueError: The language is unknown, or cannot be identified.
        """
        return Session(self.open_streams(language), self.make_gate())

    def open_streams(self, language: str | None) -> list[Stream]:
        """Open a stream, or, if the language is None, one per language; raises as `open`."""
        if language is not None:
            return [self.decoder.open(language)]
        if self.select_language is None:
            raise ValueError("no language given, and this recognizer cannot identify languages: specify the language")
        return [self.decoder.open(candidate) for candidate in self.decoder.searches]

    def is_ready(self, session: Session) -> bool:
        """Return whether `advance` can return a result or process a chunk of this session."""
        return not session.finished and (
            self.decoder.is_ready(session.candidates[0]) or self.decoder.is_done(session.candidates[0])
        )

    def advance(self, sessions: Iterable[Session]) -> list[tuple[Session, Result]]:
        """Decode one chunk of every session that is ready, and return the new results.

        A session returns a partial result per chunk, once its language is known, and a final one per segment.
        """
        ready = [session for session in sessions if self.is_ready(session)]
        self.decoder.advance(stream for session in ready for stream in session.candidates)
        for session in ready:
            self._identify_language(session)
        identified = [session for session in ready if session.language is not None]
        streams = [session.candidates[0] for session in identified]
        decoded = zip(identified, self.decoder.results(streams), self.decoder.stable_lengths(streams), strict=True)
        return [(session, self._next_result(session, hypothesis, stable)) for session, hypothesis, stable in decoded]

    def _identify_language(self, session: Session) -> None:
        if len(session.candidates) > 1 and self.select_language is not None:
            first = session.candidates[0]
            if self._starts_later(session, first) and not self.decoder.is_done(first):
                if any(hypothesis.tokens for hypothesis in self.decoder.results(session.candidates)):
                    session.replace_streams(self.open_streams(None))  # words in silence, see `_discard_silence`
                return
            start = session.first_loud / self.decoder.fbank.sample_rate
            audio_seconds = max(0.0, self._time(session, first.num_frames) - start)
            selected = self.select_language(session.candidates, audio_seconds, self.decoder.is_done(first))
            if selected is not None:
                session.candidates, session.identified = [selected], selected

    def recognize(
        self, sources: Iterable[Source[Key]], num_streams: int, on_error: Callable[[Key, AudioError], None]
    ) -> Iterator[tuple[Key, Result]]:
        """Recognize several sources in parallel; when one ends, the next takes its place.

        Args:
          sources: Sources in any languages; a language of None is identified from the audio.
          num_streams: Maximum number of open sessions.
          on_error: Called with a source that contains invalid audio; the audio before it is recognized.

        Yields:
          Key of a source, and its next result.

        Raises:
          ValueError: The language of a source is not supported, or cannot be identified.
        """
        pending = iter(sources)
        active: list[tuple[Key, Iterator[Tensor], Session]] = []
        while True:
            for source in islice(pending, num_streams - len(active)):
                active.append((source.key, iter(source.blocks), self.open(source.language)))
            if not active:
                return
            for key, blocks, session in active:
                try:
                    if not self.is_ready(session) and not session.input_finished:
                        push_next(session, blocks)
                except AudioError as error:
                    on_error(key, error)
                    session.finish()
            keys = {id(session): key for key, _, session in active}
            for session, result in self.advance(session for _, _, session in active):
                yield keys[id(session)], result
            active = [entry for entry in active if not entry[2].finished]

    def _next_result(self, session: Session, hypothesis: Hypothesis, stable: int) -> Result:
        stream, num_carried = session.candidates[0], len(session.carried_over)
        segment_start = self._time(session, session.first_frame)
        hypothesis, stable = self._discard_silence(session, hypothesis, stable)
        is_pause, is_too_long = self._endpoint(session, stream, hypothesis)
        is_region_end = self.decoder.is_done(stream)
        session.finished = is_region_end and not session.has_next_region
        is_final = is_pause or is_too_long or is_region_end
        tokens = [token for token, _, _ in session.carried_over] + hypothesis.tokens
        log_probs = [log_prob for _, _, log_prob in session.carried_over]
        log_probs += hypothesis.token_log_probs or [math.nan] * len(hypothesis.tokens)
        times = [time for _, time, _ in session.carried_over]
        times += [self._time(session, session.first_frame + frame) for frame in hypothesis.timestamps]
        unchanged = common_prefix_length(session.previous_tokens, tokens)
        ends_in_speech = is_too_long and not (is_pause or is_region_end)
        complete = self._complete_words(tokens) if ends_in_speech else len(tokens)
        last_sample = session.num_samples if session.finished else session.streams_end
        audio_end = last_sample / self.decoder.fbank.sample_rate  # within the last encoder frame
        end = audio_end if session.finished else min(self._time(session, stream.num_frames), audio_end)
        result = Result(
            language=stream.language,
            segment=session.segment,
            start=min([segment_start, *times[:1]]),
            end=min([end, *times[complete : complete + 1]]),
            tokens=tokens[:complete],
            times=times[:complete],
            log_probs=log_probs[:complete],
            stable=complete if is_final else num_carried + stable,
            unchanged=min(unchanged, complete),
            revised=unchanged < len(session.previous_tokens),
            is_final=is_final,
            is_last=session.finished,
            speech_end=session.speech_end / self.decoder.fbank.sample_rate if is_region_end else math.inf,
            speech_seconds=session.num_speech_samples / self.decoder.fbank.sample_rate,
        )
        session.previous_tokens = tokens
        if is_final:
            self._start_segment(session, list(zip(tokens, times, log_probs, strict=True))[complete:])
        return result

    def _discard_silence(self, session: Session, hypothesis: Hypothesis, stable: int) -> tuple[Hypothesis, int]:
        """Return the hypothesis and its number of stable tokens; empty if its tokens were emitted in silence.

        A model may emit words in silence, in particular if it was trained on speech only. Those before the speech must
        neither appear later, nor be the context of its words.
        """
        stream, rate = session.candidates[0], self.decoder.fbank.sample_rate
        segment_start = self._time(session, session.first_frame)
        if hypothesis.tokens and self._starts_later(session, stream):
            self.decoder.reset_hypothesis(stream, keep_context=False)
            session.first_frame = stream.num_frames
        if session.last_loud < segment_start * rate or session.first_frame == stream.num_frames:
            return Hypothesis([], [], 0.0), 0
        return hypothesis, stable

    def _start_segment(self, session: Session, carried_over: list[tuple[int, float, float]]) -> None:
        """Start the next segment, in the next region of speech if the present one has ended."""
        stream = session.candidates[0]
        session.segment, session.first_frame = session.segment + 1, stream.num_frames
        session.carried_over = carried_over
        session.previous_tokens = [token for token, _, _ in carried_over]
        if self.decoder.is_done(stream) and not session.finished:
            session.start_region([self.decoder.open(stream.language)])
        else:
            self.decoder.reset_hypothesis(stream)

    def _starts_later(self, session: Session, stream: Stream) -> bool:
        """Return whether the audio that a stream of the session has decoded is before the speech."""
        return session.speech_start >= self._time(session, stream.num_frames) * self.decoder.fbank.sample_rate

    def _time(self, session: Session, frame: int) -> float:
        """Return the time of an encoder frame of the streams, in seconds from the start of the session."""
        return session.offset / self.decoder.fbank.sample_rate + frame * FRAME_SECONDS

    def _complete_words(self, tokens: list[int]) -> int:
        """Return the number of leading tokens that form complete words."""
        if self.is_word_start is None:
            return len(tokens)
        return max((index for index, token in enumerate(tokens) if self.is_word_start(token)), default=0)

    def _endpoint(self, session: Session, stream: Stream, hypothesis: Hypothesis) -> tuple[bool, bool]:
        """Return whether the segment ends in a pause, and whether it is too long."""
        if self.endpoints is None:
            return False, False
        length = stream.num_frames - session.first_frame
        silence = length - (hypothesis.timestamps[-1] + 1 if hypothesis.timestamps else 0)
        return (
            self.endpoints.is_pause(bool(hypothesis.tokens), silence * FRAME_SECONDS),
            self.endpoints.is_too_long(length * FRAME_SECONDS),
        )
