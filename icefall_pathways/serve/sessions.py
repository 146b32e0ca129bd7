"""Recognition sessions that continue while their language changes between segments. Used on the batcher's thread."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from icefall_pathways.decoding.streaming import FRAME_SECONDS, Recognizer, Result, ScoredSamples
from icefall_pathways.serve.recognizers import ConfidentIdentifier, SpeechModel
from icefall_pathways.transcription.transcript import Segment, to_segment

_MAX_UNDECIDED_SILENCE = 10.0  # seconds after which silence is dropped while the language is unknown


@dataclass(frozen=True)
class LanguageEvent:
    """The language of a segment was identified.

    Attributes:
      segment: Index of the segment.
      time: Seconds of decoded audio when it was decided.
      language: The language code.
      probabilities: Probability of every candidate.
    """

    segment: int
    time: float
    language: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class SegmentEvent:
    """A partial or final result.

    Attributes:
      index: Index of the segment.
      segment: Text, times and language, which is None if it was to be identified and the segment has no text; the
        words are empty in partial results, unless they were requested.
      language_confidence: Probability of an identified language.
      tokens: Token IDs.
      times: Time of each token in seconds from the start of the stream.
      log_probs: Log-probability of each token; NaN if the search does not offer it.
    """

    index: int
    segment: Segment
    language_confidence: float | None
    tokens: list[int]
    times: list[float]
    log_probs: list[float]


SpeechEvent = LanguageEvent | SegmentEvent


class SpeechSession:
    """One stream of audio: a `Session` of the recognizer whose streams are replaced where the language may change.

    Audio that was received but not decoded moves to the new streams, so that no frame is lost or decoded twice.

    Args:
      model: The model.
      recognizer: The model's recognizer, or one with hotwords.
      language: Resolved language; see `SpeechModel.resolve_language`.
      all_words: Partial results have words with times, too.
    """

    def __init__(
        self, model: SpeechModel, recognizer: Recognizer, language: str | None, all_words: bool = False
    ) -> None:
        self.recognizer = recognizer
        self.inner = recognizer.open(model.pathway(language))
        self._model = model
        self._all_words = all_words
        self._language = self._requested = language
        self._probabilities: dict[str, float] | None = None

    @property
    def chunk_seconds(self) -> float:
        """Duration of a chunk in seconds."""
        return self._model.chunk_seconds

    @property
    def is_ready(self) -> bool:
        """`Recognizer.advance` can process a chunk or return a result."""
        return self.recognizer.is_ready(self.inner)

    @property
    def finished(self) -> bool:
        """The last result was returned."""
        return self.inner.finished

    @property
    def decoded_seconds(self) -> float:
        """Seconds of audio that were decoded, or dropped by voice activity detection."""
        return self.inner.decoded_seconds

    def missing_samples(self) -> int:
        """Return the number of samples to collect for `accept`: those that complete a chunk; 0 if it is complete."""
        stream, gate = self.inner.candidates[0], self.inner.gate
        num_frames = self.recognizer.decoder.model.chunk_window - stream.features.size(0)
        if num_frames <= 0:
            return 0
        num_samples = stream.fbank.missing_samples(num_frames)
        return num_samples if gate is None else gate.missing_samples(num_samples)

    def accept(self, samples: Tensor, scored: ScoredSamples | None = None) -> None:
        """Append samples (n,) at 16 kHz, and the same samples from `score_speech`.

        Raises:
          AudioError: They are not finite or out of range; the session is unchanged.
        """
        self.inner.accept_samples(samples, scored)

    def finish(self) -> None:
        """Mark the end of the audio."""
        self.inner.finish()

    def set_language(self, language: str | None) -> None:
        """Decode in another resolved language from the next segment on; at once before the first audio is decoded."""
        self._requested = language
        if self.inner.candidates[0].num_frames == 0:
            self._restart()

    def save(self) -> list[tuple[Any, dict[str, Any]]]:
        """Return a snapshot for `restore`; `advance` assigns attributes of these objects and modifies no values."""
        return [(item, dict(vars(item))) for item in (self.inner, *self.inner.candidates)]

    @staticmethod
    def restore(snapshot: list[tuple[Any, dict[str, Any]]]) -> None:
        """Undo what `Recognizer.advance` did since `save`, after it raised an exception."""
        for item, attributes in snapshot:
            vars(item).update(attributes)

    def events(self, result: Result | None) -> Iterator[SpeechEvent]:
        """Yield the events of a decoded chunk, and prepare the next segment.

        Args:
          result: The new result of `inner`; None while the language is unknown.
        """
        if result is None:
            self._drop_silence()
            return
        identifier = self.recognizer.select_language
        if self._language is None and self._probabilities is None and isinstance(identifier, ConfidentIdentifier):
            assert self.inner.identified is not None
            probabilities = identifier.take_probabilities(self.inner.identified)
            # Else the end of audio without words forced a selection. A carried-over word continues in this language.
            if result.tokens or not result.is_final or self.inner.carried_over:
                self._probabilities = probabilities
                yield LanguageEvent(result.segment, self.decoded_seconds, result.language, probabilities)
        if result.changed or result.is_final:
            yield self._segment_event(result)
        if result.is_final and not result.is_last:
            self._change_language()

    def _segment_event(self, result: Result) -> SegmentEvent:
        language = self._language if self._probabilities is None else result.language
        segment = to_segment(result, self._model.tokenizer, language, self._all_words or result.is_final)
        confidence = None if self._probabilities is None else self._probabilities[result.language]
        return SegmentEvent(result.segment, segment, confidence, result.tokens, result.times, result.log_probs)

    def _change_language(self) -> None:
        """Restart for the next segment if its language may differ; not in the middle of speech."""
        identifies = self._requested is None and self.recognizer.select_language is not None
        if not self.inner.carried_over and (identifies or self._requested != self._language):
            self._restart()

    def _drop_silence(self) -> None:
        """Bound the memory of candidates that decode silence."""
        is_silent = self.inner.first_loud == math.inf
        if is_silent and self.inner.candidates[0].num_frames * FRAME_SECONDS > _MAX_UNDECIDED_SILENCE:
            self._restart()

    def _restart(self) -> None:
        """Decode the remaining frames in the requested language."""
        self._language, self._probabilities = self._requested, None
        self.inner.replace_streams(self.recognizer.open_streams(self._model.pathway(self._language)))
