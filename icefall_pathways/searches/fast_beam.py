"""Fast beam search: k2 keeps a lattice for every stream and extends the lattices of all streams at once.

"Fast and parallel decoding for transducer" (Kang et al., arXiv 2211.00484).
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import k2
import torch
from torch import Tensor

from icefall_pathways.searches.base import Hypothesis, Search, SearchState, TransducerHead

_NEVER = -1e10  # log-probability of what is out of the question; k2 does not take -inf


@dataclass(frozen=True)
class _Run:
    """Frames that some streams read together; k2 gives lattices only to the object that read.

    k2 leaves the last frame it has read out of its lattices (github.com/k2-fsa/k2/pull/1089), so that a token there is
    lost. Every run therefore ends with a pause, a frame in which all hypotheses take a blank of probability 1.

    Attributes:
      decoder: k2's object, after its end.
      pauses: Of each of its streams, the places of the pauses among all frames that k2 read; the last is the run's end.
    """

    decoder: k2.RnntDecodingStreams
    pauses: list[tuple[int, ...]]

    @cached_property
    def lattices(self) -> k2.Fsa:
        """A lattice per stream over all frames it has read; blanks are label 0."""
        return self.decoder.format_output([pauses[-1] + 1 for pauses in self.pauses], allow_partial=True)

    @cached_property
    def best(self) -> list[Hypothesis]:
        """The best path of each stream."""
        return _best(self.lattices, self.pauses)


@dataclass(frozen=True)
class FastBeamState(SearchState):
    """The lattices of N streams, in k2's own objects: `advance` changes them, so it can follow a state only once.

    Attributes:
      streams: k2's memory of each stream.
      pauses: Of each stream, see `_Run`.
      runs: Of each stream, the last run and its place there; None before the first frame.
    """

    streams: list[k2.RnntDecodingStream]
    pauses: list[tuple[int, ...]]
    runs: list[tuple[_Run, int] | None]

    def split(self) -> list["FastBeamState"]:
        """Give every stream a state of its own, so that it can leave the batch."""
        values = zip(self.streams, self.pauses, self.runs, strict=True)
        return [FastBeamState([stream], [pauses], [run]) for stream, pauses, run in values]

    def _join(self, states: Sequence["FastBeamState"]) -> "FastBeamState":
        return FastBeamState(
            [stream for state in states for stream in state.streams],
            [pauses for state in states for pauses in state.pauses],
            [run for state in states for run in state.runs],
        )


class FastBeamSearch(Search[FastBeamState]):
    """Beam search in k2, without a limit on the number of hypotheses but with three on their neighbourhood.

    The decoding graph accepts every token sequence, as icefall's fast_beam_search does.

    Args:
      model: A transducer; its predictor and joiner are used.
      beam: States worse than the best of the stream by more than this log-probability are dropped.
      max_contexts: Different last tokens (of the predictor's context) kept per stream and frame.
      max_states: States of lattice kept per stream and frame.
      blank_penalty: Subtracted from the blank's logit: the larger, the fewer deletions.
      num_paths: Paths drawn from the lattice for `n_best`.
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
        super().__init__(model, blank_penalty)
        for name, value in (("beam", beam), ("max_contexts", max_contexts), ("max_states", max_states)):
            if value <= 0:
                raise ValueError(f"fast beam search with {name} {value}: expected more than 0")
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
        """The state of streams that have not begun: one empty hypothesis each."""
        streams = [k2.RnntDecodingStream(self._graph) for _ in range(batch_size)]
        return FastBeamState(streams, [()] * batch_size, [None] * batch_size)

    @torch.inference_mode()
    def advance(self, state: FastBeamState, encoder_out: Tensor, lens: Tensor) -> FastBeamState:
        """Read the next frames of every stream.

        Args:
          state: Of N streams; k2 changes what is in it, so it cannot be advanced another time.
          encoder_out: (N, T, D) the next encoder outputs.
          lens: (N,) how many of them belong to each stream; frames beyond change nothing.
        """
        frames = self.model.joiner.encoder_proj(encoder_out)
        left = lens.tolist()
        all_pauses, runs = list(state.pauses), list(state.runs)
        # k2 cannot let a stream stand still, so those that end earlier leave, and the others go on in another run.
        for begin, end in pairwise(sorted({0, *left})):
            reading = [place for place, length in enumerate(left) if length >= end]
            decoder = k2.RnntDecodingStreams([state.streams[place] for place in reading], self._config)
            self._read(decoder, frames[reading, begin:end])
            for place in reading:
                read_before = all_pauses[place][-1] + 1 if all_pauses[place] else 0
                all_pauses[place] += (read_before + end - begin,)
            run = _Run(decoder, [all_pauses[place] for place in reading])
            for number, place in enumerate(reading):
                runs[place] = (run, number)
        return FastBeamState(state.streams, all_pauses, runs)

    def results(self, state: FastBeamState) -> list[Hypothesis]:
        """The tokens of each stream's best path; `log_prob` is that of this path alone."""
        return [Hypothesis([], [], 0.0) if run is None else run[0].best[run[1]] for run in state.runs]

    def n_best(self, state: FastBeamState) -> list[list[Hypothesis]]:
        """The hypotheses on paths drawn from each stream's lattice; `log_prob` is that of all their paths in it."""
        return [[Hypothesis([], [], 0.0)] if run is None else self._n_best(*run) for run in state.runs]

    def stable(self, state: FastBeamState) -> list[int]:
        """None at all: k2 joins histories that differ in older tokens, so the best path may still change anywhere."""
        return [0] * len(state.streams)

    def reset_hypothesis(self, state: FastBeamState) -> FastBeamState:
        """New streams: k2 begins every lattice without history."""
        return self.init(len(state.streams))

    def _read(self, decoder: k2.RnntDecodingStreams, frames: Tensor) -> None:
        """Read projected frames (N, T, joiner_dim) and pause."""
        for t in range(frames.size(1)):
            shape, contexts = decoder.get_contexts()
            # k2 fills the history before the first token with zeros; ours is one blank, and nothing before it.
            padding = contexts[:, :-1].eq(0) & contexts[:, 1:].eq(0)
            contexts = torch.cat([contexts[:, :-1].masked_fill(padding, -1), contexts[:, -1:]], dim=1)
            now = frames[:, t].index_select(0, shape.row_ids(1).long())
            decoder.advance(self._logits(now, self._predict(contexts.long())).log_softmax(dim=-1))
        _, contexts = decoder.get_contexts()
        pause = torch.full((contexts.size(0), self.vocab_size), _NEVER, device=self.device)
        pause[:, self.blank_id] = 0.0
        decoder.advance(pause)
        decoder.terminate_and_flush_to_streams()

    def _n_best(self, run: _Run, place: int) -> list[Hypothesis]:
        lattice = k2.arc_sort(k2.create_fsa_vec([run.lattices[place]]))
        paths = k2.random_paths(lattice, use_double_scores=True, num_paths=self.num_paths)
        labels = k2.ragged.index(lattice.labels.contiguous(), paths).remove_values_leq(0)
        different = sorted({tuple(tokens) for tokens in labels.tolist()[0]})
        # A sequence that may wait between its tokens (label 0, as a blank) takes its own paths out of the lattice.
        timed = k2.intersect_device(
            lattice,
            k2.add_epsilon_self_loops(k2.linear_fsa([list(tokens) for tokens in different], self.device)),
            b_to_a_map=torch.zeros(len(different), dtype=torch.int32, device=self.device),
            sorted_match_a=True,
        )
        totals = timed.get_tot_scores(use_double_scores=True, log_semiring=True).tolist()
        best = _best(timed, [run.pauses[place]] * len(different))
        found = [dataclasses.replace(path, log_prob=total) for path, total in zip(best, totals, strict=True)]
        return sorted(found, key=lambda hypothesis: -hypothesis.log_prob)


def _best(lattices: k2.Fsa, pauses: list[tuple[int, ...]]) -> list[Hypothesis]:
    """The best path of each lattice; a path has one arc per frame that k2 read, pauses included, and a last one."""
    paths = k2.shortest_path(lattices, use_double_scores=True)
    labels = k2.RaggedTensor(paths.arcs.shape().remove_axis(1), paths.labels.contiguous()).tolist()
    scores = paths.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
    return [
        Hypothesis(
            tokens=[label for label in path if label > 0],
            timestamps=[place - bisect_left(paused, place) for place, label in enumerate(path) if label > 0],
            log_prob=score,
        )
        for path, score, paused in zip(labels, scores, pauses, strict=True)
    ]
