"""One recognition session: the audio that it receives, and the streams that decode it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from icefall_pathways.constants import SAMPLE_RATE
from icefall_pathways.decoding.streaming.decoder import FRAME_SECONDS, Stream, check_samples
from icefall_pathways.decoding.streaming.voice_activity import ScoredSamples, SpeechBlock, SpeechGate, score_samples

_SILENCE_AMPLITUDE = 0.001  # -60 dB of full scale: audio that never exceeds it contains no speech


@dataclass(eq=False)
class Session:
    """One recognition session: a single stream, or one per candidate language until the language is identified.

    Attributes:
      candidates: The streams; all receive the same audio.
      segment: Index of the current segment, from 0.
      first_frame: First encoder frame of the segment.
      previous_tokens: Tokens of the previous result.
      carried_over: Tokens, times and log-probabilities moved from the previous segment to this one: a last word that
        may be incomplete.
      gate: Voice activity detection; None: all audio is decoded.
      num_samples: Number of samples received.
      first_loud: Index of the first sample that is louder than silence; infinity if there is none.
      last_loud: Index of the last such sample; -1 if there is none.
      offset: Position of the first sample of the streams.
      speech_start: Index of the first sample of the streams that is louder than silence; infinity if there is none.
      speech_end: Position of the end of the speech in the region of the streams; infinity without a gate, and until the
        region has ended.
      identified: Stream of the language that was identified last; it may be replaced in `candidates`.
      input_finished: No more input follows.
      finished: The last result was returned.
    """

    candidates: list[Stream]
    gate: SpeechGate | None = None
    segment: int = 0
    first_frame: int = 0
    previous_tokens: list[int] = field(default_factory=list)
    carried_over: list[tuple[int, float, float]] = field(default_factory=list)
    num_samples: int = 0
    first_loud: float = math.inf
    last_loud: int = -1
    offset: int = 0
    speech_start: float = math.inf
    speech_end: float = math.inf
    identified: Stream | None = None
    input_finished: bool = False
    finished: bool = False
    _waiting: list[SpeechBlock] = field(default_factory=list)  # audio after the end of the streams
    _num_passed: int = 0  # samples of the streams

    def __post_init__(self) -> None:
        for stream in self.candidates:
            stream.fbank = self.candidates[0].fbank

    @property
    def num_speech_samples(self) -> int:
        """Number of samples of regions of speech: all samples without a gate."""
        return self.num_samples if self.gate is None else self.gate.num_samples

    @property
    def language(self) -> str | None:
        """Language of the session; None while it is unknown."""
        return self.candidates[0].language if len(self.candidates) == 1 else None

    def accept_samples(self, samples: Tensor, scored: ScoredSamples | None = None) -> None:
        """Append samples (n,), 16 kHz, in [-1, 1].

        Args:
          samples: The samples.
          scored: The same samples from `score_speech`; None: the voice activity detection scores them.

        Raises:
          AudioError: The samples are not finite or out of range; the session is unchanged.
          ValueError: The session is finished.
        """
        check_samples(samples)
        loud = _loud_positions(samples)
        if loud.numel() > 0:
            self.first_loud = min(self.first_loud, self.num_samples + int(loud[0]))
            self.last_loud = self.num_samples + int(loud[-1])
        self.num_samples += samples.numel()
        if self.gate is None:
            self._extend_streams(samples)
        else:
            blocks = self.gate.accept(samples) if scored is None else self.gate.accept_scored(scored)
            self._waiting = self._waiting + blocks
            self._pass_on()

    def finish(self) -> None:
        """Mark the end of the input."""
        self.input_finished = True
        if self.gate is not None:
            self._waiting = self._waiting + self.gate.flush()
            self._pass_on()
        if not self.candidates[0].input_finished:
            self._finish_streams()

    @property
    def decoded_seconds(self) -> float:
        """Seconds of audio that were decoded, or dropped by voice activity detection."""
        stream = self.candidates[0]
        decodes = self.gate is None or self.gate.is_open or bool(self._waiting) or stream.input_finished
        if self.finished or not decodes:
            return self.num_samples / SAMPLE_RATE
        return min(self.num_samples, self.offset + _num_samples(stream)) / SAMPLE_RATE

    @property
    def streams_end(self) -> int:
        """Position after the last sample that the streams have received."""
        return self.offset + self._num_passed

    @property
    def has_next_region(self) -> bool:
        """Another region of speech follows, or may follow, when the streams are done."""
        return bool(self._waiting) or not self.input_finished

    def start_region(self, candidates: list[Stream]) -> None:
        """Continue with new streams, whose state does not depend on the audio so far."""
        self.candidates, self.first_frame = candidates, 0
        self.offset, self.speech_start, self.speech_end, self._num_passed = self.num_samples, math.inf, math.inf, 0
        self.__post_init__()
        self._pass_on()

    def replace_streams(self, candidates: list[Stream]) -> None:
        """Decode the remaining audio with new streams, whose languages may differ; previous results do not change."""
        old = self.candidates[0]
        for stream in candidates:
            stream.fbank, stream.features, stream.input_finished = old.fbank, old.features, old.input_finished
        self.candidates, self.first_frame = candidates, 0
        self.offset, self._num_passed = self.offset + _num_samples(old), self._num_passed - _num_samples(old)
        self.speech_start = max(self.speech_start, self.offset) if self.last_loud >= self.offset else math.inf
        self.previous_tokens = []
        self.first_loud = max(self.first_loud, self.offset) if self.last_loud >= self.offset else math.inf

    def _pass_on(self) -> None:
        """Pass the audio of the current region to the streams."""
        while self._waiting and not self.candidates[0].input_finished:
            block, *self._waiting = self._waiting  # a new list: a copy of the session keeps its own
            self.offset = block.start if block.is_first else self.offset
            self._extend_streams(block.samples)
            if block.speech_end is not None:
                self.speech_end = block.speech_end
                self._finish_streams()

    def _extend_streams(self, samples: Tensor) -> None:
        if math.isinf(self.speech_start) and (loud := _loud_positions(samples)).numel() > 0:
            self.speech_start = self.offset + self._num_passed + int(loud[0])
        self._num_passed += samples.numel()
        features = self.candidates[0].fbank.accept(samples)
        for stream in self.candidates:
            stream.accept_features(features)

    def _finish_streams(self) -> None:
        features = self.candidates[0].fbank.flush()
        for stream in self.candidates:
            stream.finish_features(features)


def score_speech(sessions: Sequence[Session], samples: Sequence[Tensor]) -> list[ScoredSamples | None]:
    """Score the next samples (n,) of each session in batches, for `Session.accept_samples`; sessions are unchanged.

    Returns:
      The scored samples of each session; None without voice activity detection.
    """
    gates = [session.gate for session in sessions if session.gate is not None]
    blocks = [block for session, block in zip(sessions, samples, strict=True) if session.gate is not None]
    scored = iter(score_samples(gates, blocks))
    return [None if session.gate is None else next(scored) for session in sessions]


def _num_samples(stream: Stream) -> int:
    """Return the number of samples that a stream has decoded."""
    return round(stream.num_frames * FRAME_SECONDS * SAMPLE_RATE)


def _loud_positions(samples: Tensor) -> Tensor:
    """Return the positions (m,) of the samples (n,) that are louder than silence."""
    return samples.abs().gt(_SILENCE_AMPLITUDE).nonzero().flatten()
