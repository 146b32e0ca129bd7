"""What a speaker sees of the streams: results that grow, in segments, in a language that may be unknown at first."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
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
    check_samples,
    push_next,
)
from icefall_pathways.decoding.streaming.endpoint import EndpointConfig
from icefall_pathways.searches import Hypothesis

_SILENCE = 0.001  # -60 dB of full scale: samples that never exceed it hold no speech


@dataclass(frozen=True)
class Result:
    """What has been recognised in a segment up to now.

    Attributes:
      language: Of the pathway.
      segment: Number of the segment, from 0.
      start: Where it begins, in seconds from the start of the stream.
      end: How far it has been heard.
      tokens: Token ids.
      times: When each token was emitted, in seconds from the start of the stream.
      stable: Leading tokens that no later result of the segment changes; of a final one all.
      unchanged: Leading tokens that are as in the result before, which may have been shown already.
      revised: The result before had other or more tokens behind those.
      is_final: The segment is over.
      is_last: So is the session.
    """

    language: str
    segment: int
    start: float
    end: float
    tokens: list[int]
    times: list[float]
    stable: int
    unchanged: int
    revised: bool
    is_final: bool
    is_last: bool

    @property
    def changed(self) -> bool:
        """Whether the tokens are others than in the result before."""
        return self.revised or self.unchanged < len(self.tokens)


@dataclass(eq=False)
class Session:
    """Somebody who speaks: one stream, or, while the language is unknown, one in each language.

    Attributes:
      candidates: The streams; they hear the same.
      segment: Number of the segment, from 0.
      first_frame: Its first encoder frame.
      previous_tokens: The tokens of the result before.
      carried_over: Tokens and their times that the segment takes over: the last word if it may be incomplete.
      num_samples: Samples that came.
      first_loud: The place of the first of them that is louder than silence; infinity before.
      last_loud: That of the last; -1 before.
      finished: The last result was given.
    """

    candidates: list[Stream]
    segment: int = 0
    first_frame: int = 0
    previous_tokens: list[int] = field(default_factory=list)
    carried_over: list[tuple[int, float]] = field(default_factory=list)
    num_samples: int = 0
    first_loud: float = math.inf
    last_loud: int = -1
    finished: bool = False

    def __post_init__(self) -> None:
        for stream in self.candidates:
            stream.fbank = self.candidates[0].fbank

    @property
    def input_finished(self) -> bool:
        """Whether no more is to come."""
        return self.candidates[0].input_finished

    @property
    def language(self) -> str | None:
        """The language; None while it is unknown."""
        return self.candidates[0].language if len(self.candidates) == 1 else None

    def accept_samples(self, samples: Tensor) -> None:
        """Take the next samples (n,), 16 kHz, in [-1, 1].

        Raises:
          AudioError: They are no audio; the session is as it was.
        """
        check_samples(samples)
        loud = samples.abs().gt(_SILENCE).nonzero()
        if loud.numel() > 0:
            self.first_loud = min(self.first_loud, self.num_samples + int(loud[0]))
            self.last_loud = self.num_samples + int(loud[-1])
        self.num_samples += samples.numel()
        features = self.candidates[0].fbank.accept(samples)
        for stream in self.candidates:
            stream.accept_features(features)

    def finish(self) -> None:
        """Tell that no more is to come."""
        features = self.candidates[0].fbank.flush()
        for stream in self.candidates:
            stream.finish_features(features)


class LanguageSelector(Protocol):
    """Tells which of several languages is spoken."""

    def __call__(self, candidates: Sequence[Stream], sound: float, ended: bool) -> Stream | None:
        """The stream in the language that is spoken; None to go on listening, unless the audio has ended.

        `sound` is how many seconds have been heard since the silence at the beginning.
        """


class Recognizer:
    """Turns speech into results: many speakers, who come and go at any time, each in a language of their own.

    Args:
      decoder: Runs the streams.
      endpoints: When a segment is over; None: when the stream is.
      select_language: Finds out languages; needed for speakers whose language nobody knows.
      is_word_start: Whether a token begins a word. Where a segment is cut in the middle of speech, its last word, which
        may go on, is then moved to the next segment; None: tokens are taken for words.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        endpoints: EndpointConfig | None = None,
        select_language: LanguageSelector | None = None,
        is_word_start: Callable[[int], bool] | None = None,
    ) -> None:
        self.decoder = decoder
        self.endpoints = endpoints
        self.select_language = select_language
        self.is_word_start = is_word_start

    def open(self, language: str | None = ANY_LANGUAGE) -> Session:
        """Begin a session; language None means that it is to be found out.

        Raises:
          ValueError: There is no such language, or no way to find it out.
        """
        if language is not None:
            return Session([self.decoder.open(language)])
        if self.select_language is None:
            raise ValueError("the language is unknown and this recogniser cannot find it out: name it")
        return Session([self.decoder.open(candidate) for candidate in self.decoder.searches])

    def is_ready(self, session: Session) -> bool:
        """Whether `advance` would do something for this session."""
        return not session.finished and (
            self.decoder.is_ready(session.candidates[0]) or self.decoder.is_done(session.candidates[0])
        )

    def advance(self, sessions: Iterable[Session]) -> list[tuple[Session, Result]]:
        """Read one chunk of every session that is ready; returns the new results.

        A session gives a result for each chunk, once its language is known, and a final one at each segment's end.
        """
        ready = [session for session in sessions if self.is_ready(session)]
        self.decoder.advance(stream for session in ready for stream in session.candidates)
        for session in ready:
            self._find_language(session)
        known = [session for session in ready if session.language is not None]
        streams = [session.candidates[0] for session in known]
        found = zip(known, self.decoder.results(streams), self.decoder.stable(streams), strict=True)
        return [(session, self._show(session, hypothesis, stable)) for session, hypothesis, stable in found]

    def _find_language(self, session: Session) -> None:
        if len(session.candidates) > 1 and self.select_language is not None:
            first = session.candidates[0]
            begin = session.first_loud / self.decoder.fbank.sample_rate
            sound = max(0.0, first.num_frames * FRAME_SECONDS - begin)
            chosen = self.select_language(session.candidates, sound, self.decoder.is_done(first))
            if chosen is not None:
                session.candidates = [chosen]

    def recognize(
        self, sources: Iterable[Source[Key]], num_streams: int, on_error: Callable[[Key, AudioError], None]
    ) -> Iterator[tuple[Key, Result]]:
        """Recognise audio from many sources at a time; one that ends makes room for the next.

        Args:
          sources: Their languages may be mixed; `None` as a language means that it is to be found out.
          num_streams: Sessions that are open at a time.
          on_error: Told of a source whose audio is bad from some place on. What was heard before is recognised.

        Yields:
          Results as they come, and whose they are.
        """
        waiting = iter(sources)
        active: list[tuple[Key, Iterator[Tensor], Session]] = []
        while True:
            for source in islice(waiting, num_streams - len(active)):
                active.append((source.key, iter(source.pieces), self.open(source.language)))
            if not active:
                return
            for key, pieces, session in active:
                try:
                    if not self.is_ready(session) and not session.input_finished:
                        push_next(session, pieces)
                except AudioError as error:
                    on_error(key, error)
                    session.finish()
            keys = {id(session): key for key, _, session in active}
            for session, result in self.advance(session for _, _, session in active):
                yield keys[id(session)], result
            active = [entry for entry in active if not entry[2].finished]

    def _show(self, session: Session, found: Hypothesis, stable: int) -> Result:
        stream, before = session.candidates[0], len(session.carried_over)
        # Models know utterances, not silence, and expect a word at the beginning.
        if session.last_loud < session.first_frame * FRAME_SECONDS * self.decoder.fbank.sample_rate:
            found, stable = Hypothesis([], [], 0.0), 0
        pause, full = self._endpoint(session, stream, found)
        session.finished = self.decoder.is_done(stream)
        final = pause or full or session.finished
        tokens = [token for token, _ in session.carried_over] + found.tokens
        times = [time for _, time in session.carried_over]
        times += [(session.first_frame + frame) * FRAME_SECONDS for frame in found.timestamps]
        pairs = zip(session.previous_tokens, tokens, strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        whole = self._whole_words(tokens) if full and not (pause or session.finished) else len(tokens)
        result = Result(
            language=stream.language,
            segment=session.segment,
            start=min([session.first_frame * FRAME_SECONDS, *times[:1]]),
            end=stream.num_frames * FRAME_SECONDS,
            tokens=tokens[:whole],
            times=times[:whole],
            stable=whole if final else before + stable,
            unchanged=min(kept, whole),
            revised=kept < len(session.previous_tokens),
            is_final=final,
            is_last=session.finished,
        )
        session.previous_tokens = tokens
        if final:
            self.decoder.reset_hypothesis(stream)
            session.segment, session.first_frame = session.segment + 1, stream.num_frames
            session.carried_over = list(zip(tokens, times, strict=True))[whole:]
            session.previous_tokens = tokens[whole:]
        return result

    def _whole_words(self, tokens: list[int]) -> int:
        """How many leading tokens are words that do not go on."""
        if self.is_word_start is None:
            return len(tokens)
        return max((place for place, token in enumerate(tokens) if self.is_word_start(token)), default=0)

    def _endpoint(self, session: Session, stream: Stream, found: Hypothesis) -> tuple[bool, bool]:
        """Whether the segment ends in a pause, and whether it is too long."""
        if self.endpoints is None:
            return False, False
        length = stream.num_frames - session.first_frame
        silence = length - (found.timestamps[-1] + 1 if found.timestamps else 0)
        return (
            self.endpoints.is_pause(bool(found.tokens), silence * FRAME_SECONDS),
            self.endpoints.is_too_long(length * FRAME_SECONDS),
        )
