"""Decoding chunk by chunk, with streams of any age and length in one batch."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.constants import FRAME_SHIFT, SAMPLE_RATE, SUBSAMPLING_FACTOR
from icefall_pathways.data.features import FbankConfig, StreamingFbank
from icefall_pathways.decoding.streaming.engine import StreamEncoder
from icefall_pathways.decoding.streaming.state import BatchState, StreamState, join_search_states, join_states
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.searches import Hypothesis, Search, SearchState

Key = TypeVar("Key")
T = TypeVar("T")

FRAME_SECONDS = SUBSAMPLING_FACTOR * FRAME_SHIFT / SAMPLE_RATE
"""Duration of an encoder frame in seconds."""

ANY_LANGUAGE = ""
"""The language of all streams if the decoder has one search and no pathways."""

_MAX_AMPLITUDE = 32.0  # decoded audio may slightly exceed full scale; larger values are not audio in [-1, 1]


class AudioError(ValueError):
    """Audio that cannot be decoded; only its own stream is affected."""


@dataclass(frozen=True)
class Source(Generic[Key]):
    """An utterance to decode.

    Attributes:
      key: Identifies the utterance in the results.
      blocks: Consecutive blocks of its samples (n,) or features (n, F).
      language: Selects the pathway; None if unknown, which only the recognizer accepts.
    """

    key: Key
    blocks: Iterable[Tensor]
    language: str | None = ANY_LANGUAGE


@dataclass
class Stream:
    """State of one stream: buffered features, encoder state and search state.

    Accepts either samples or features, not both.

    Attributes:
      language: Selects the pathway.
      fbank: Computes features from samples.
      features: Frames (T, F) not yet processed by the encoder.
      state: State of encoder and search.
      num_frames: Number of encoder frames processed.
      input_finished: No more input follows.
    """

    language: str
    fbank: StreamingFbank
    features: Tensor
    state: StreamState
    num_frames: int = 0
    input_finished: bool = False

    @property
    def search_state(self) -> SearchState:
        """Search state of this stream, as a batch of one."""
        return self.state.search_state

    def accept_samples(self, samples: Tensor) -> None:
        """Append samples (n,), 16 kHz, in [-1, 1].

        Raises:
          AudioError: The samples are not finite or out of range; the stream is unchanged.
          ValueError: The stream is finished.
        """
        check_samples(samples)
        self.accept_features(self.fbank.accept(samples))

    def accept_features(self, features: Tensor) -> None:
        """Append feature frames (n, F).

        Raises:
          ValueError: The stream is finished.
        """
        if self.input_finished:
            raise ValueError("this stream is finished: open another one for more audio")
        self.features = torch.cat([self.features, features.to(self.features)])

    def finish(self) -> None:
        """Mark the end of the input, so that the last frames can be processed."""
        self.finish_features(self.fbank.flush())

    def finish_features(self, features: Tensor) -> None:
        """Append the last feature frames (n, F) and mark the end of the input."""
        self.accept_features(features)
        self.input_finished = True


class StreamingDecoder:
    """Run a transducer and its searches on streams; streams of one language share a batch.

    Args:
      model: The transducer, in eval mode and on its device.
      searches: A search per language, built for `model`; or a single search if there are no pathways to select.
      fbank: Feature options; the same as in training.
      pathways: The languages' sub-networks of `model`; None to run the dense model.
      encoder: Encodes the chunks of the streams by `model`; None: a `StreamEncoder` with the engine "auto".
    """

    def __init__(
        self,
        model: Transducer,
        searches: Search | Mapping[str, Search],
        fbank: FbankConfig,
        pathways: FoldedPathways | None = None,
        encoder: StreamEncoder | None = None,
    ) -> None:
        self.model = model
        self.searches = {ANY_LANGUAGE: searches} if isinstance(searches, Search) else dict(searches)
        self.fbank = fbank
        self._extractor = fbank.extractor(snip_edges=True)
        self.pathways = pathways
        self.device = next(model.parameters()).device
        self.encoder = StreamEncoder(model, pathways) if encoder is None else encoder

    def open(self, language: str | None = ANY_LANGUAGE) -> Stream:
        """Open a stream.

        Raises:
          ValueError: There is no search for the language.
        """
        if language is None or language not in self.searches:
            raise ValueError(f"unsupported language {language!r}: expected one of {', '.join(self.searches)}")
        with self._pathway(language):
            search_state = self.searches[language].init(1)
        return Stream(
            language=language,
            fbank=StreamingFbank(self.fbank, self._extractor),
            features=torch.empty(0, self.fbank.num_bins, device=self.device),
            state=StreamState(BatchState(self.model, self.model.init_states(1, self.device), search_state, 1), 0),
        )

    def is_ready(self, stream: Stream) -> bool:
        """Return whether a chunk can be processed: all its frames, or the last frames of the input, are buffered."""
        frames = stream.features.size(0)
        return frames > 0 if stream.input_finished else frames >= self.model.chunk_window

    def is_done(self, stream: Stream) -> bool:
        """Return whether the input of the stream is finished and completely processed."""
        return stream.input_finished and stream.features.size(0) == 0

    @torch.inference_mode()
    def advance(self, streams: Iterable[Stream]) -> list[Stream]:
        """Process one chunk of every stream that is ready, in one batch per language, and return these streams."""
        ready = group_by_language([stream for stream in streams if self.is_ready(stream)])
        for language, group in ready.items():
            with self._pathway(language):
                self._advance(group, language)
        return [stream for group in ready.values() for stream in group]

    def _advance(self, streams: list[Stream], language: str) -> None:
        """Process one chunk of streams of one language."""
        window, shift = self.model.chunk_window, self.model.chunk_shift
        # Pad the last chunk to a full window; the model treats the padding as silence, so no final word is lost.
        chunks = [stream.features[:window] for stream in streams]
        x = torch.stack([F.pad(chunk, (0, 0, 0, window - chunk.size(0))) for chunk in chunks])
        x_lens = torch.tensor([chunk.size(0) for chunk in chunks], device=self.device)
        encoder_states, search_state = join_states([stream.state for stream in streams])
        encoder_out, lens, encoder_states = self.encoder.stream(language, x, x_lens, encoder_states)
        search_state = self.searches[language].advance(search_state, encoder_out, lens)
        batch = BatchState(self.model, encoder_states, search_state, len(streams))
        for row, (stream, num_frames) in enumerate(zip(streams, lens.tolist(), strict=True)):
            stream.state = StreamState(batch, row)
            stream.num_frames += num_frames
            rest = stream.features[shift:]
            # A view would keep all features in memory until more audio arrives.
            stream.features = rest if rest.size(0) >= window else rest.clone()

    def results(self, streams: Sequence[Stream]) -> list[Hypothesis]:
        """Return the current best hypothesis of each stream."""
        return self._query(streams, lambda search, state: search.results(state))

    def stable_lengths(self, streams: Sequence[Stream]) -> list[int]:
        """Return the length of each stream's stable prefix; see `Search.stable_lengths`."""
        return self._query(streams, lambda search, state: search.stable_lengths(state))

    def _query(self, streams: Sequence[Stream], query: Callable[[Search, SearchState], Iterable[T]]) -> list[T]:
        """Apply a query to the searches of the streams, and return the answers in the order of the streams."""
        answers: dict[int, T] = {}
        for language, group in group_by_language(streams).items():
            state = join_search_states([stream.state for stream in group])
            answers.update(zip(map(id, group), query(self.searches[language], state), strict=True))
        return [answers[id(stream)] for stream in streams]

    def reset_hypothesis(self, stream: Stream, keep_context: bool = True) -> None:
        """Start a new hypothesis; encoder state and, unless `keep_context` is False, predictor context are kept."""
        search = self.searches[stream.language]
        with self._pathway(stream.language):
            search_state = search.reset_hypothesis(stream.search_state) if keep_context else search.init(1)
        encoder_states = self.model.stack_states([stream.state.encoder_states])  # a copy, as in `leave_batch`
        stream.state = StreamState(BatchState(self.model, encoder_states, search_state, 1), 0)

    def _pathway(self, language: str) -> AbstractContextManager[None]:
        return nullcontext() if self.pathways is None else self.pathways.activate(language)

    def decode(
        self,
        sources: Iterable[Source[Key]],
        num_streams: int,
        from_features: bool = False,
        on_error: Callable[[Key, AudioError], None] | None = None,
    ) -> Iterator[tuple[Key, Hypothesis]]:
        """Decode utterances in parallel streams; when one ends, the next utterance takes its place.

        Args:
          sources: The utterances; languages may be mixed.
          num_streams: Maximum number of open streams.
          from_features: The blocks are features (n, F) instead of samples (n,).
          on_error: Called with an utterance whose audio cannot be decoded; the other streams continue. None: raise.

        Yields:
          Key and hypothesis of each utterance, in the order in which they end.

        Raises:
          AudioError: The audio of an utterance cannot be decoded, and there is no `on_error`.
          ValueError: There is no search for the language of an utterance.
        """
        pending = iter(sources)
        active: list[tuple[Key, Iterator[Tensor], Stream]] = []
        while True:
            for source in islice(pending, num_streams - len(active)):
                active.append((source.key, iter(source.blocks), self.open(source.language)))
            if not active:
                return
            failed = []
            for key, blocks, stream in active:
                try:
                    if not self.is_ready(stream) and not stream.input_finished:
                        push_next(FeatureSink(stream) if from_features else stream, blocks)
                except AudioError as error:
                    if on_error is None:
                        raise
                    failed.append(id(stream))
                    on_error(key, error)
            active = [entry for entry in active if id(entry[2]) not in failed]
            self.advance(stream for _, _, stream in active)
            done = [entry for entry in active if self.is_done(entry[2])]
            active = [entry for entry in active if not self.is_done(entry[2])]
            hypotheses = self.results([stream for _, _, stream in done])
            yield from zip((key for key, _, _ in done), hypotheses, strict=True)


def check_samples(samples: Tensor) -> None:
    """Check that samples are finite and approximately in [-1, 1].

    Raises:
      AudioError: They are not finite, or too large.
    """
    if samples.numel() == 0:
        return
    peak = float(samples.abs().max())
    if not peak <= _MAX_AMPLITUDE:
        actual = f"up to {peak:g}" if math.isfinite(peak) else "that are not finite (NaN or infinity)"
        raise AudioError(f"samples {actual}: expected numbers in [-1, 1]; divide 16-bit integers by 32768")


def group_by_language(streams: Iterable[Stream]) -> dict[str, list[Stream]]:
    """Group streams by language: those of one language can share a batch."""
    groups: dict[str, list[Stream]] = {}
    for stream in streams:
        groups.setdefault(stream.language, []).append(stream)
    return groups


class AudioSink(Protocol):
    """A consumer of audio: a stream or a session."""

    def accept_samples(self, samples: Tensor) -> None:
        """Append samples (n,)."""

    def finish(self) -> None:
        """Mark the end of the input."""


def push_next(sink: AudioSink, blocks: Iterator[Tensor]) -> None:
    """Pass the next block of samples to a sink, or finish it if there are no more."""
    block = next(blocks, None)
    if block is None:
        sink.finish()
    else:
        sink.accept_samples(block)


class FeatureSink:
    """Adapter that passes blocks of features (n, F), instead of samples, to a stream."""

    def __init__(self, stream: Stream) -> None:
        self.accept_samples = stream.accept_features
        self.finish = stream.finish
