"""Scores for token sequences that do not hear the audio: hotwords and n-gram language models are both of this kind."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_TABLE_ENTRIES = 2**24  # up to this many states times tokens, all scores are tabulated: 200 MB at most
_BLOCK = 1024  # states tabulated at a time


class FailureAutomaton:
    """A deterministic weighted automaton over tokens, with failure arcs, in tensors.

    A state has arcs for some tokens. For another token its failure arc leads, without reading, to a state that knows
    less, and so on to state 0, the root, which takes every token: one without an arc leads back to the root. That is
    the automaton of Aho and Corasick (hotwords) and that of a back-off language model ("Weighted finite-state
    transducers in speech recognition", Mohri et al., 2002, section 3.2: failure transitions), so both are one here.

    Args:
      arcs: For each state, its arcs: token -> (next state, score).
      failures: For each state, (the state its failure arc leads to, the score of that); the root's is not read.
      vocab_size: Tokens, the blank included.
      start: The state before the first token.
      final: For each state, what is added if the sequence ends there; None: nothing.
      default_score: Of a token for which the root has no arc.
      scale: All scores are multiplied by it.
    """

    def __init__(
        self,
        arcs: Sequence[Mapping[int, tuple[int, float]]],
        failures: Sequence[tuple[int, float]],
        vocab_size: int,
        start: int = 0,
        final: Sequence[float] | None = None,
        default_score: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        flat = [(token, target, score) for of_state in arcs for token, (target, score) in sorted(of_state.items())]
        counts = torch.tensor([len(of_state) for of_state in arcs])
        self.vocab_size = vocab_size
        self.start = start
        self._default_score = default_score * scale
        self._counts = counts
        self._first = counts.cumsum(0) - counts
        self._tokens = torch.tensor([token for token, _, _ in flat], dtype=torch.int64)
        self._targets = torch.tensor([target for _, target, _ in flat], dtype=torch.int64)
        self._scores = torch.tensor([score for _, _, score in flat], dtype=torch.float32) * scale
        self._failures = torch.tensor([0, *(target for target, _ in failures[1:])])
        self._failure_scores = torch.tensor([0.0, *(score for _, score in failures[1:])]) * scale
        self._final = torch.tensor(final if final is not None else [0.0] * len(arcs)) * scale
        self._max_failures = _longest_chain(self._failures)
        self._table: tuple[Tensor, Tensor] | None = None
        if len(arcs) * vocab_size <= _TABLE_ENTRIES:
            blocks = [self._expand(block) for block in torch.arange(len(arcs)).split(_BLOCK)]
            self._table = (torch.cat([scores for scores, _ in blocks]), torch.cat([targets for _, targets in blocks]))

    @property
    def num_states(self) -> int:
        """Number of states."""
        return len(self._counts)

    def to(self, device: torch.device | str) -> "FailureAutomaton":
        """Move the tensors, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        if self._table is not None:
            self._table = (self._table[0].to(device), self._table[1].to(device))
        return self

    def follow(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (M, vocab_size) of each token in `states` (M,), failures included, and the states it leads to."""
        if self._table is None:
            return self._expand(states)
        scores, targets = self._table
        return scores[states], targets[states]

    def final(self, states: Tensor) -> Tensor:
        """What is added where sequences end in `states`, of any shape."""
        return self._final[states]

    def _expand(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """As `follow`, from the arcs: those of the state that knows least first, the others overwrite them."""
        chain = [states]
        score = self._failure_scores.new_zeros(len(states))
        passed = [score]
        for _ in range(self._max_failures):
            score = score + self._failure_scores[chain[-1]]
            chain.append(self._failures[chain[-1]])
            passed.append(score)
        scores = (score + self._default_score)[:, None].repeat(1, self.vocab_size)
        targets = torch.zeros_like(scores, dtype=torch.int64)
        rows = torch.arange(len(states), device=states.device)
        for step in reversed(range(len(chain))):
            # A chain that is at the root already repeats it.
            new = rows if step == 0 else rows[chain[step - 1] != 0]
            at = chain[step][new]
            counts = self._counts[at]
            row = new.repeat_interleave(counts)
            begin = counts.cumsum(0) - counts
            arc = torch.arange(len(row), device=states.device) + (self._first[at] - begin).repeat_interleave(counts)
            scores[row, self._tokens[arc]] = self._scores[arc] + passed[step][row]
            targets[row, self._tokens[arc]] = self._targets[arc]
        return scores, targets


def _longest_chain(failures: Tensor) -> int:
    """The largest number of failure arcs from any state to the root."""
    states, length = torch.arange(len(failures)), 0
    while bool(states.any()):
        states, length = failures[states], length + 1
    return length
