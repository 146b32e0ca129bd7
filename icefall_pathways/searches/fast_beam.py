"""Fast beam search: k2 keeps one lattice per stream and extends the lattices of all streams at once.

"Fast and parallel decoding for transducer" (Kang et al., arXiv 2211.00484).
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.errors import k2_error
from icefall_pathways.ranges import PositiveFloat, PositiveInt, Range, check_number
from icefall_pathways.searches.base import Hypothesis, Search, SearchOptions, SearchState, TransducerHead

if TYPE_CHECKING:
    import k2  # imported where it is used: the other searches do not need it

_LOG_ZERO = -1e10  # log-probability of impossible tokens; k2 does not accept -inf


@dataclass(frozen=True)
class _Segment:
    """Frames that a group of streams processed together; k2 returns lattices only from the object that processed them.

    k2 omits the last frame from its lattices (github.com/k2-fsa/k2/pull/1089), so that a token emitted there is lost.
    Every segment therefore ends with a flush frame, in which all hypotheses emit a blank with probability 1.

    Attributes:
      decoder: k2's object, after it has been terminated.
      flush_frames: Indices of the flush frames of each stream among all frames that k2 processed; the last one is at
        the end of the segment.
    """

    decoder: "k2.RnntDecodingStreams"
    flush_frames: list[tuple[int, ...]]

    @cached_property
    def lattices(self) -> "k2.Fsa":
        """One lattice per stream over all its frames; blanks have label 0."""
        return self.decoder.format_output([frames[-1] + 1 for frames in self.flush_frames], allow_partial=True)

    @cached_property
    def best(self) -> list[Hypothesis]:
        """The best path of each stream."""
        return _best_paths(self.lattices, self.flush_frames)


@dataclass(frozen=True)
class FastBeamState(SearchState):
    """Lattices of N streams in k2's objects, which `advance` modifies: a state can be advanced only once.

    Attributes:
      streams: k2's state of each stream.
      flush_frames: Flush frames of each stream; see `_Segment`.
      segments: The last segment of each stream and the stream's index in it; None before the first frame.
    """

    streams: "list[k2.RnntDecodingStream]"
    flush_frames: list[tuple[int, ...]]
    segments: list[tuple[_Segment, int] | None]

    def split(self) -> list["FastBeamState"]:
        """Return one state per stream, so that each stream can leave the batch."""
        values = zip(self.streams, self.flush_frames, self.segments, strict=True)
        return [FastBeamState([stream], [frames], [segment]) for stream, frames, segment in values]

    def _join(self, states: Sequence["FastBeamState"]) -> "FastBeamState":
        return FastBeamState(
            [stream for state in states for stream in state.streams],
            [frames for state in states for frames in state.flush_frames],
            [segment for state in states for segment in state.segments],
        )


class FastBeamSearch(Search[FastBeamState]):
    """Beam search in k2, limited by score, contexts and lattice states instead of a number of hypotheses.

    The decoding graph accepts every token sequence, as in icefall's fast_beam_search.

    Args:
      model: A transducer; only its predictor and joiner are used.
      beam: Prune lattice states that score worse than the best one of the stream by more than this log-probability.
      max_contexts: Maximum number of predictor contexts per stream and frame.
      max_states: Maximum number of lattice states per stream and frame.
      blank_penalty: Subtracted from the logit of the blank; larger values give fewer deletions.
      num_paths: Number of paths that `n_best` samples from each lattice.

    Raises:
      ValueError: k2 cannot be imported, or a limit is not positive.
    """

    def __init__(
        self,
        model: TransducerHead,
        beam: float = 20.0,
        max_contexts: int = 8,
        max_states: int = 64,
        blank_penalty: float = 0.0,
        num_paths: int = 200,
    ) -> None:
        try:
            import k2
        except ImportError as error:
            alternative = "--decoding-method modified_beam_search"
            raise k2_error("--decoding-method fast_beam_search", error, alternative) from error

        super().__init__(model, blank_penalty)
        for name, value in (("beam", beam), ("max_contexts", max_contexts), ("max_states", max_states)):
            check_number(name, value, Range(0, open_minimum=True))
        self.num_paths = num_paths
        self._graph = k2.trivial_graph(self.vocab_size - 1, self.device)
        self._config = k2.RnntDecodingConfig(
            vocab_size=self.vocab_size,
            decoder_history_len=self.context_size,
            beam=beam,
            max_states=max_states,
            max_contexts=max_contexts,
        )

    def init(self, batch_size: int) -> FastBeamState:
        """Return the initial state of `batch_size` streams: one empty hypothesis each."""
        import k2

        streams = [k2.RnntDecodingStream(self._graph) for _ in range(batch_size)]
        return FastBeamState(streams, [()] * batch_size, [None] * batch_size)

    @torch.inference_mode()
    def advance(self, state: FastBeamState, encoder_out: Tensor, lens: Tensor) -> FastBeamState:
        """Process the next frames of every stream; see `Search.advance`. k2 modifies `state`: do not use it again."""
        import k2

        frames = self.model.joiner.encoder_proj(encoder_out)
        lengths = lens.tolist()
        all_flush_frames, segments = list(state.flush_frames), list(state.segments)
        # k2 cannot pause a stream: streams that end leave, and the others continue in another segment.
        for start, end in pairwise(sorted({0, *lengths})):
            active = [index for index, length in enumerate(lengths) if length >= end]
            decoder = k2.RnntDecodingStreams([state.streams[index] for index in active], self._config)
            self._process(decoder, frames[active, start:end])
            for index in active:
                num_processed = all_flush_frames[index][-1] + 1 if all_flush_frames[index] else 0
                all_flush_frames[index] += (num_processed + end - start,)
            segment = _Segment(decoder, [all_flush_frames[index] for index in active])
            for row, index in enumerate(active):
                segments[index] = (segment, row)
        return FastBeamState(state.streams, all_flush_frames, segments)

    def results(self, state: FastBeamState) -> list[Hypothesis]:
        """Return the tokens of each stream's best path; `log_prob` is the log-probability of this path only."""
        return [
            Hypothesis([], [], 0.0) if segment is None else segment[0].best[segment[1]] for segment in state.segments
        ]

    def n_best(self, state: FastBeamState) -> list[list[Hypothesis]]:
        """Return the hypotheses on paths sampled from each lattice; `log_prob` sums all their paths in the lattice."""
        return [[Hypothesis([], [], 0.0)] if segment is None else self._n_best(*segment) for segment in state.segments]

    def stable_lengths(self, state: FastBeamState) -> list[int]:
        """Return 0 for each stream: k2 merges histories that differ in older tokens, so any token may still change."""
        return [0] * len(state.streams)

    def reset_hypothesis(self, state: FastBeamState) -> FastBeamState:
        """Return an initial state, because k2 starts every lattice without history."""
        return self.init(len(state.streams))

    def _process(self, decoder: "k2.RnntDecodingStreams", frames: Tensor) -> None:
        """Process projected frames (N, T, joiner_dim) and a flush frame."""
        for t in range(frames.size(1)):
            shape, contexts = decoder.get_contexts()
            # k2 pads the history before the first token with zeros; the predictor expects one blank, padded with -1.
            padding = contexts[:, :-1].eq(0) & contexts[:, 1:].eq(0)
            contexts = torch.cat([contexts[:, :-1].masked_fill(padding, -1), contexts[:, -1:]], dim=1)
            current = frames[:, t].index_select(0, shape.row_ids(1).long())
            decoder.advance(self._logits(current, self._predict(contexts.long())).log_softmax(dim=-1))
        _, contexts = decoder.get_contexts()
        flush = torch.full((contexts.size(0), self.vocab_size), _LOG_ZERO, device=self.device)
        flush[:, self.blank_id] = 0.0
        decoder.advance(flush)
        decoder.terminate_and_flush_to_streams()

    def _n_best(self, segment: _Segment, row: int) -> list[Hypothesis]:
        import k2

        lattice = k2.arc_sort(k2.create_fsa_vec([segment.lattices[row]]))
        paths = k2.random_paths(lattice, use_double_scores=True, num_paths=self.num_paths)
        labels = k2.ragged.index(lattice.labels.contiguous(), paths).remove_values_leq(0)
        sequences = sorted({tuple(tokens) for tokens in labels.tolist()[0]})
        # Intersect each sequence, with self-loops for blanks (label 0), with the lattice: all its paths remain.
        aligned = k2.intersect_device(
            lattice,
            k2.add_epsilon_self_loops(k2.linear_fsa([list(tokens) for tokens in sequences], self.device)),
            b_to_a_map=torch.zeros(len(sequences), dtype=torch.int32, device=self.device),
            sorted_match_a=True,
        )
        totals = aligned.get_tot_scores(use_double_scores=True, log_semiring=True).tolist()
        best = _best_paths(aligned, [segment.flush_frames[row]] * len(sequences))
        hypotheses = [dataclasses.replace(path, log_prob=total) for path, total in zip(best, totals, strict=True)]
        return sorted(hypotheses, key=lambda hypothesis: -hypothesis.log_prob)


def _best_paths(lattices: "k2.Fsa", flush_frames: list[tuple[int, ...]]) -> list[Hypothesis]:
    """Return the best path of each lattice; a path has one arc per frame, flush frames included, and a final arc."""
    import k2

    paths = k2.shortest_path(lattices, use_double_scores=True)
    labels = k2.RaggedTensor(paths.arcs.shape().remove_axis(1), paths.labels.contiguous()).tolist()
    scores = paths.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    return [
        Hypothesis(
            tokens=[label for label in path if label > 0],
            timestamps=[index - bisect_left(flushed, index) for index, label in enumerate(path) if label > 0],
            log_prob=score,
        )
        for path, score, flushed in zip(labels, scores, flush_frames, strict=True)
    ]


@dataclass(frozen=True)
class FastBeamSearchOptions(SearchOptions):
    """Options of fast beam search."""

    beam: PositiveFloat = 20.0
    """For fast_beam_search: prune hypotheses that score worse than the best by more than this log-probability."""

    max_contexts: PositiveInt = 8
    """For fast_beam_search: predictor contexts kept per stream and frame."""

    max_states: PositiveInt = 64
    """For fast_beam_search: lattice states kept per stream and frame."""

    def build_search(self, model: TransducerHead, tokenizer: Tokenizer, language: str) -> FastBeamSearch:
        """Build the search; see `SearchOptions.build_search`."""
        return FastBeamSearch(model, self.beam, self.max_contexts, self.max_states, self.blank_penalty)

    def file_name_parts(self) -> list[str]:
        """Return the options that change the output, as parts of file names."""
        limits = f"beam-{self.beam:g}-max-contexts-{self.max_contexts}-max-states-{self.max_states}"
        return [limits, *super().file_name_parts()]
