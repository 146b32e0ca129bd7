"""Token-level weighted automata for shallow fusion (hotwords and n-gram language models)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_MAX_TABLE_ENTRIES = 2**24  # default of `max_table_entries`: 200 MB at most
_STATES_PER_BLOCK = 1024  # states that are tabulated at once


class FailureAutomaton:
    """A deterministic weighted automaton over tokens with failure arcs, stored in tensors; a `TokenScorer`.

    A state has arcs for some tokens. For any other token, its failure arc leads, without consuming the token, to a
    state with a shorter history, and finally to state 0, the root. The root accepts every token; a token without an arc
    leads back to the root. Both Aho-Corasick automata (hotwords) and back-off language models have this form (failure
    transitions: Mohri et al., "Weighted finite-state transducers in speech recognition", 2002, section 3.2).

    Args:
      arcs: Arcs of each state: token -> (next state, score).
      failures: Failure arc of each state: (next state, score); the root's is ignored.
      vocab_size: Number of tokens, including the blank.
      start: The initial state.
      final_scores: Score of each state that is added if the sequence ends there; None: all 0.
      default_score: Score of a token for which the root has no arc.
      scale: Factor of all scores.
      max_table_entries: Tabulate all transitions if the number of states times tokens is at most this; larger automata
        are evaluated from their arcs, which is slower.
    """

    def __init__(
        self,
        arcs: Sequence[Mapping[int, tuple[int, float]]],
        failures: Sequence[tuple[int, float]],
        vocab_size: int,
        start: int = 0,
        final_scores: Sequence[float] | None = None,
        default_score: float = 0.0,
        scale: float = 1.0,
        max_table_entries: int = _MAX_TABLE_ENTRIES,
    ) -> None:
        flat = [(token, target, score) for state_arcs in arcs for token, (target, score) in sorted(state_arcs.items())]
        counts = torch.tensor([len(state_arcs) for state_arcs in arcs])
        self.vocab_size = vocab_size
        self.start = start
        self._default_score = default_score * scale
        self._counts = counts
        self._first = counts.cumsum(0) - counts
        self._tokens = torch.tensor([token for token, _, _ in flat], dtype=torch.int64)
        sources = torch.arange(len(arcs)).repeat_interleave(counts)
        # Sorted: the arcs of a state are ordered by token. The last key ends every search for a missing arc.
        self._keys = torch.cat([sources * vocab_size + self._tokens, torch.tensor([torch.iinfo(torch.int64).max])])
        self._targets = torch.tensor([target for _, target, _ in flat], dtype=torch.int64)
        self._scores = torch.tensor([score for _, _, score in flat], dtype=torch.float32) * scale
        self._failures = torch.tensor([0, *(target for target, _ in failures[1:])])
        self._failure_scores = torch.tensor([0.0, *(score for _, score in failures[1:])]) * scale
        self._final_scores = torch.tensor(final_scores if final_scores is not None else [0.0] * len(arcs)) * scale
        self._max_failures = _longest_chain(self._failures)
        self._table: tuple[Tensor, Tensor] | None = None
        if len(arcs) * vocab_size <= max_table_entries:
            blocks = [self._evaluate_arcs(block) for block in torch.arange(len(arcs)).split(_STATES_PER_BLOCK)]
            self._table = (torch.cat([scores for scores, _ in blocks]), torch.cat([targets for _, targets in blocks]))

    @property
    def num_states(self) -> int:
        """Number of states."""
        return len(self._counts)

    def to(self, device: torch.device | str) -> "FailureAutomaton":
        """Move the tensors to a device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        if self._table is not None:
            self._table = (self._table[0].to(device), self._table[1].to(device))
        return self

    def scores(self, states: Tensor) -> Tensor:
        """Return the score of every token in `states` (M,), via failure arcs: (M, vocab_size)."""
        return self._evaluate_arcs(states)[0] if self._table is None else self._table[0][states]

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the states (M,) that follow `states` (M,) after `tokens` (M,)."""
        if self._table is not None:
            return self._table[1][states, tokens]
        targets, pending = torch.zeros_like(states), torch.ones_like(states, dtype=torch.bool)
        for _ in range(self._max_failures + 1):
            keys = states * self.vocab_size + tokens
            arcs = torch.searchsorted(self._keys, keys)
            matches = pending & self._keys[arcs].eq(keys)
            targets[matches] = self._targets[arcs[matches]]
            pending &= ~matches
            states = self._failures[states]
        return targets

    def final_scores(self, states: Tensor) -> Tensor:
        """Return the scores added where sequences end in `states`, of any shape."""
        return self._final_scores[states]

    def _evaluate_arcs(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores and next states of all tokens; arcs of longer histories overwrite those of shorter ones."""
        chain = [states]
        score = self._failure_scores.new_zeros(len(states))
        chain_scores = [score]
        for _ in range(self._max_failures):
            score = score + self._failure_scores[chain[-1]]
            chain.append(self._failures[chain[-1]])
            chain_scores.append(score)
        scores = (score + self._default_score)[:, None].repeat(1, self.vocab_size)
        targets = torch.zeros_like(scores, dtype=torch.int64)
        rows = torch.arange(len(states), device=states.device)
        for depth in reversed(range(len(chain))):
            # A chain that has reached the root repeats it.
            active = rows if depth == 0 else rows[chain[depth - 1] != 0]
            sources = chain[depth][active]
            counts = self._counts[sources]
            row = active.repeat_interleave(counts)
            offset = counts.cumsum(0) - counts
            arc = torch.arange(len(row), device=states.device)
            arc = arc + (self._first[sources] - offset).repeat_interleave(counts)
            scores[row, self._tokens[arc]] = self._scores[arc] + chain_scores[depth][row]
            targets[row, self._tokens[arc]] = self._targets[arc]
        return scores, targets


def _longest_chain(failures: Tensor) -> int:
    """Return the largest number of failure arcs from any state to the root."""
    states, length = torch.arange(len(failures)), 0
    while bool(states.any()):
        states, length = failures[states], length + 1
    return length
