"""Decoding chunk by chunk: many streams, of any age and length, share every batch."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.constants import SUBSAMPLING_FACTOR
from icefall_pathways.data.features import FbankConfig, StreamingFbank
from icefall_pathways.decoding.streaming.state import BatchState, StreamState, join_encoder_states, join_search_states
from icefall_pathways.models.stream_graph import Step, StreamGraph
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.pathways.activation import FoldedPathways
from icefall_pathways.searches import Hypothesis, Search, SearchState

Key = TypeVar("Key")
T = TypeVar("T")

FRAME_SECONDS = SUBSAMPLING_FACTOR * FbankConfig.frame_shift / FbankConfig.sample_rate
"""Duration of an encoder frame."""

ANY_LANGUAGE = ""
"""Stands for the language where all streams run through the model as it is."""

_LOUDEST = 32.0  # decoded audio may exceed full scale a little, but not so far


class AudioError(ValueError):
    """Audio that cannot be recognised; it concerns its own stream alone."""


@dataclass(frozen=True)
class Source(Generic[Key]):
    """An utterance to decode.

    Attributes:
      key: What it is called.
      pieces: Its samples (n,) or features (n, F), in the pieces in which they come.
      language: Through which pathway; None where nobody knows, which only the recogniser takes.
    """

    key: Key
    pieces: Iterable[Tensor]
    language: str | None = ANY_LANGUAGE


@dataclass
class Stream:
    """One utterance on its way: what has come in and not been read, and what the model and the search remember.

    Feed it either samples or features, not both.

    Attributes:
      language: Through which pathway it runs.
      fbank: Makes features of samples.
      features: (T, F) frames not yet read by the encoder.
      state: What encoder and search remember of this stream.
      num_frames: Encoder frames read.
      input_finished: No more is to come.
    """

    language: str
    fbank: StreamingFbank
    features: Tensor
    state: StreamState
    num_frames: int = 0
    input_finished: bool = False

    @property
    def search_state(self) -> SearchState:
        """The search's hypotheses for this stream, as a batch of one."""
        return self.state.search_state

    def accept_samples(self, samples: Tensor) -> None:
        """Take the next samples (n,), 16 kHz, in [-1, 1].

        Raises:
          AudioError: They are no audio; the stream is as it was.
        """
        check_samples(samples)
        self.accept_features(self.fbank.accept(samples))

    def accept_features(self, features: Tensor) -> None:
        """Take the next feature frames (n, F)."""
        if self.input_finished:
            raise ValueError("this stream was finished: open another one for more audio")
        self.features = torch.cat([self.features, features.to(self.features)])

    def finish(self) -> None:
        """Tell that no more is to come; the last frames can then be read."""
        self.finish_features(self.fbank.flush())

    def finish_features(self, features: Tensor) -> None:
        """Take the last feature frames (n, F)."""
        self.accept_features(features)
        self.input_finished = True


class StreamingDecoder:
    """Runs a transducer and its searches over streams; those of one language share a batch.

    Args:
      model: In eval mode, on the device where it is to run.
      searches: Made for `model`, one for each language; or one for all, where nothing is switched.
      fbank: How features are made of samples; as in training.
      pathways: The languages' sub-networks of `model`; None runs the dense model.
      graph_after: After so many batches of chunks a language's graph is made, see `compile`; infinity is never.
    """

    def __init__(
        self,
        model: Transducer,
        searches: Search | Mapping[str, Search],
        fbank: FbankConfig,
        pathways: FoldedPathways | None = None,
        graph_after: float = 100,  # when half of what they took is about what the graph takes to be made
    ) -> None:
        self.model = model
        self.searches = {ANY_LANGUAGE: searches} if isinstance(searches, Search) else dict(searches)
        self.fbank = fbank
        self.pathways = pathways
        self.device = next(model.parameters()).device
        self.graph_after = graph_after
        self._graphs: dict[str, StreamGraph] = {}
        self._chunks: Counter[str] = Counter()

    def open(self, language: str | None = ANY_LANGUAGE) -> Stream:
        """Begin a stream.

        Raises:
          ValueError: The language is none of those for which there is a search.
        """
        if language is None or language not in self.searches:
            raise ValueError(f"no stream in language {language!r}: expected one of {', '.join(self.searches)}")
        with self._pathway(language):
            search_state = self.searches[language].init(1)
        return Stream(
            language=language,
            fbank=StreamingFbank(self.fbank),
            features=torch.empty(0, self.fbank.num_bins, device=self.device),
            state=StreamState(BatchState(self.model, self.model.init_states(1, self.device), search_state, 1), 0),
        )

    def is_ready(self, stream: Stream) -> bool:
        """Whether a chunk can be read: all its frames are there, or those that are there are the last ones."""
        frames = stream.features.size(0)
        return frames > 0 if stream.input_finished else frames >= self.model.chunk_window

    def is_done(self, stream: Stream) -> bool:
        """Whether all of a finished stream was read."""
        return stream.input_finished and stream.features.size(0) == 0

    @torch.inference_mode()
    def advance(self, streams: Iterable[Stream]) -> list[Stream]:
        """Read one chunk of every stream that is ready, in one batch for each language; returns those."""
        ready = by_language([stream for stream in streams if self.is_ready(stream)])
        for language, group in ready.items():
            with self._pathway(language):
                self._advance(group, language)
        return [stream for group in ready.values() for stream in group]

    def _advance(self, streams: list[Stream], language: str) -> None:
        """Read one chunk of streams of one language."""
        window, shift = self.model.chunk_window, self.model.chunk_shift
        # The last chunk is filled up to what it looks ahead, which the model takes for silence: no last word is lost.
        chunks = [stream.features[:window] for stream in streams]
        x = torch.stack([F.pad(chunk, (0, 0, 0, window - chunk.size(0))) for chunk in chunks])
        x_lens = torch.tensor([chunk.size(0) for chunk in chunks], device=self.device)
        states = [stream.state for stream in streams]
        encoder_out, lens, encoder_states = self._step(language)(x, x_lens, join_encoder_states(states))
        search_state = self.searches[language].advance(join_search_states(states), encoder_out, lens)
        batch = BatchState(self.model, encoder_states, search_state, len(streams))
        for row, (stream, num_frames) in enumerate(zip(streams, lens.tolist(), strict=True)):
            stream.state = StreamState(batch, row)
            stream.num_frames += num_frames
            stream.features = stream.features[shift:]

    def compile(self, languages: Iterable[str] | None = None) -> None:
        """Make the graphs with which chunks are encoded in half the time; on GPUs there are none.

        It takes half a second for each language. Later changes of weights and masks are not seen.

        Args:
          languages: None is all.
        """
        for language in self.searches if languages is None else languages:
            if language not in self._graphs and self.device.type == "cpu":
                weights = {} if self.pathways is None else self.pathways.weights(language)
                self._graphs[language] = StreamGraph(self.model, weights)

    def _step(self, language: str) -> Step:
        """What encodes the next chunk of streams in this language."""
        self._chunks[language] += 1
        if self._chunks[language] > self.graph_after:
            self.compile([language])
        return self._graphs.get(language, self.model.stream)

    def results(self, streams: Sequence[Stream]) -> list[Hypothesis]:
        """What has been recognised in each stream up to now."""
        return self._ask(streams, lambda search, state: search.results(state))

    def stable(self, streams: Sequence[Stream]) -> list[int]:
        """How many leading tokens of each stream's result will not change any more."""
        return self._ask(streams, lambda search, state: search.stable(state))

    def _ask(self, streams: Sequence[Stream], question: Callable[[Search, SearchState], Iterable[T]]) -> list[T]:
        """What the searches of the streams answer, in the order of the streams."""
        answers: dict[int, T] = {}
        for language, group in by_language(streams).items():
            state = join_search_states([stream.state for stream in group])
            found = question(self.searches[language], state)
            answers.update(zip(map(id, group), found, strict=True))
        return [answers[id(stream)] for stream in streams]

    def reset_hypothesis(self, stream: Stream) -> None:
        """Forget what was recognised in a stream; what comes next still follows it."""
        with self._pathway(stream.language):
            search_state = self.searches[stream.language].reset_hypothesis(stream.search_state)
        stream.state = StreamState(BatchState(self.model, stream.state.encoder_states, search_state, 1), 0)

    def _pathway(self, language: str) -> AbstractContextManager[None]:
        return nullcontext() if self.pathways is None else self.pathways.activate(language)

    def decode(
        self,
        sources: Iterable[Source[Key]],
        num_streams: int,
        from_features: bool = False,
        on_error: Callable[[Key, AudioError], None] | None = None,
    ) -> Iterator[tuple[Key, Hypothesis]]:
        """Decode utterances through parallel streams; one that ends makes room for the next.

        Args:
          sources: The utterances; languages may be mixed.
          num_streams: Streams that are open at a time.
          from_features: The pieces are features (n, F), not samples (n,).
          on_error: Told of an utterance whose audio cannot be recognised, while the others go on; None raises.

        Yields:
          Utterances as they end: their name and what was recognised.
        """
        waiting = iter(sources)
        active: list[tuple[Key, Iterator[Tensor], Stream]] = []
        while True:
            for source in islice(waiting, num_streams - len(active)):
                active.append((source.key, iter(source.pieces), self.open(source.language)))
            if not active:
                return
            broken = []
            for key, pieces, stream in active:
                try:
                    if not self.is_ready(stream) and not stream.input_finished:
                        push_next(FeatureSink(stream) if from_features else stream, pieces)
                except AudioError as error:
                    if on_error is None:
                        raise
                    broken.append(id(stream))
                    on_error(key, error)
            active = [entry for entry in active if id(entry[2]) not in broken]
            self.advance(stream for _, _, stream in active)
            ended = [entry for entry in active if self.is_done(entry[2])]
            active = [entry for entry in active if not self.is_done(entry[2])]
            found = self.results([stream for _, _, stream in ended])
            yield from zip((key for key, _, _ in ended), found, strict=True)


def check_samples(samples: Tensor) -> None:
    """Check that samples are numbers of about [-1, 1].

    Raises:
      AudioError: They are not.
    """
    if samples.numel() == 0:
        return
    peak = float(samples.abs().max())
    if not peak <= _LOUDEST:
        found = f"up to {peak:g}" if math.isfinite(peak) else "that are not finite (NaN or infinity)"
        raise AudioError(f"samples {found}: expected numbers in [-1, 1]; 16 bit integers are divided by 32768")


def by_language(streams: Iterable[Stream]) -> dict[str, list[Stream]]:
    """Streams in groups that can share a batch."""
    groups: dict[str, list[Stream]] = {}
    for stream in streams:
        groups.setdefault(stream.language, []).append(stream)
    return groups


class AudioSink(Protocol):
    """What takes audio: a stream or a session."""

    def accept_samples(self, samples: Tensor) -> None:
        """Take the next samples (n,)."""

    def finish(self) -> None:
        """Tell that no more is to come."""


def push_next(sink: AudioSink, pieces: Iterator[Tensor]) -> None:
    """Give a sink its next piece of samples, or its end."""
    piece = next(pieces, None)
    if piece is None:
        sink.finish()
    else:
        sink.accept_samples(piece)


class FeatureSink:
    """A stream that is given features for samples."""

    def __init__(self, stream: Stream) -> None:
        self.accept_samples = stream.accept_features
        self.finish = stream.finish
