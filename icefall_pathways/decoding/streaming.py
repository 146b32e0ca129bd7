"""Decoding chunk by chunk: many streams, of any age and length, share every batch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_pathways.data.features import FbankConfig, StreamingFbank
from icefall_pathways.decoding.searches import Hypothesis, Search, SearchState
from icefall_pathways.models.transducer import Transducer

Key = TypeVar("Key")


@dataclass
class Stream:
    """One utterance on its way: what has come in and not been read, and what the model and the search remember.

    Feed it either samples or features, not both.

    Attributes:
      fbank: Makes features of samples.
      features: (T, F) frames not yet read by the encoder.
      encoder_states: The encoder's memory of this stream, as a batch of one.
      search_state: The search's hypotheses for this stream, as a batch of one.
      finished: No more is to come.
    """

    fbank: StreamingFbank
    features: Tensor
    encoder_states: Any
    search_state: SearchState
    finished: bool = False

    def accept_samples(self, samples: Tensor) -> None:
        """Take the next samples (n,), 16 kHz, in [-1, 1]."""
        self.accept_features(self.fbank.accept(samples))

    def accept_features(self, features: Tensor) -> None:
        """Take the next feature frames (n, F)."""
        if self.finished:
            raise ValueError("this stream was finished: open another one for more audio")
        self.features = torch.cat([self.features, features.to(self.features)])

    def finish(self) -> None:
        """Tell that no more is to come; the last frames can then be read."""
        self.accept_features(self.fbank.flush())
        self.finished = True


class StreamingDecoder:
    """Runs a transducer and a search over streams.

    Args:
      model: In eval mode, on the device where it is to run.
      search: Made for `model`.
      fbank: How features are made of samples; as in training.
    """

    def __init__(self, model: Transducer, search: Search, fbank: FbankConfig) -> None:
        self.model = model
        self.search = search
        self.fbank = fbank
        self.device = next(model.parameters()).device

    def open(self) -> Stream:
        """Begin a stream."""
        return Stream(
            fbank=StreamingFbank(self.fbank),
            features=torch.empty(0, self.fbank.num_bins, device=self.device),
            encoder_states=self.model.init_states(1, self.device),
            search_state=self.search.init(1),
        )

    def is_ready(self, stream: Stream) -> bool:
        """Whether a chunk can be read: all its frames are there, or those that are there are the last ones."""
        frames = stream.features.size(0)
        return frames > 0 if stream.finished else frames >= self.model.chunk_window

    def is_done(self, stream: Stream) -> bool:
        """Whether all of a finished stream was read."""
        return stream.finished and stream.features.size(0) == 0

    @torch.inference_mode()
    def advance(self, streams: Iterable[Stream]) -> list[Stream]:
        """Read one chunk of every stream that is ready, in one batch; returns those."""
        ready = [stream for stream in streams if self.is_ready(stream)]
        if not ready:
            return ready
        window, shift = self.model.chunk_window, self.model.chunk_shift
        # The last chunk is filled up to what it looks ahead, which the model takes for silence: no last word is lost.
        chunks = [stream.features[:window] for stream in ready]
        x = torch.stack([F.pad(chunk, (0, 0, 0, window - chunk.size(0))) for chunk in chunks])
        x_lens = torch.tensor([chunk.size(0) for chunk in chunks], device=self.device)
        encoder_states = self.model.stack_states([stream.encoder_states for stream in ready])
        encoder_out, lens, encoder_states = self.model.stream(x, x_lens, encoder_states)
        search_state = SearchState.join([stream.search_state for stream in ready])
        search_state = self.search.advance(search_state, encoder_out, lens)
        states = zip(self.model.unstack_states(encoder_states), search_state.split(), strict=True)
        for stream, (encoder_state, one_search_state) in zip(ready, states, strict=True):
            stream.encoder_states, stream.search_state = encoder_state, one_search_state
            stream.features = stream.features[shift:]
        return ready

    def results(self, streams: Sequence[Stream]) -> list[Hypothesis]:
        """What has been recognised in each stream up to now."""
        if not streams:
            return []
        return self.search.results(SearchState.join([stream.search_state for stream in streams]))

    def decode(
        self, sources: Iterable[tuple[Key, Iterable[Tensor]]], num_streams: int, from_features: bool = False
    ) -> Iterator[tuple[Key, Hypothesis]]:
        """Decode utterances through parallel streams; one that ends makes room for the next.

        Args:
          sources: Per utterance, what it is called and the pieces in which it comes in.
          num_streams: Streams that are open at a time.
          from_features: The pieces are features (n, F), not samples (n,).

        Yields:
          Utterances as they end: their name and what was recognised.
        """
        waiting = iter(sources)
        active: list[tuple[Key, Iterator[Tensor], Stream]] = []
        while True:
            for key, pieces in islice(waiting, num_streams - len(active)):
                active.append((key, iter(pieces), self.open()))
            if not active:
                return
            for _, pieces, stream in active:
                if not self.is_ready(stream) and not stream.finished:
                    _feed(stream, pieces, from_features)
            self.advance(stream for _, _, stream in active)
            ended = [entry for entry in active if self.is_done(entry[2])]
            active = [entry for entry in active if not self.is_done(entry[2])]
            found = self.results([stream for _, _, stream in ended])
            yield from zip((key for key, _, _ in ended), found, strict=True)


def _feed(stream: Stream, pieces: Iterator[Tensor], from_features: bool) -> None:
    """Give a stream its next piece, or its end."""
    piece = next(pieces, None)
    if piece is None:
        stream.finish()
    elif from_features:
        stream.accept_features(piece)
    else:
        stream.accept_samples(piece)
