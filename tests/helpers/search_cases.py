"""Random encoder outputs for searches, and reference implementations of searches."""

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from icefall_pathways.searches import Search, SearchState


def run(search, encoder_out, lens, sizes=None):
    """Decode in chunks of the given sizes; streams that end within a chunk have fewer valid frames there."""
    state = search.init(encoder_out.size(0))
    start = 0
    for size in sizes or [encoder_out.size(1)]:
        chunk = encoder_out[:, start : start + size]
        state = search.advance(state, chunk, (lens - start).clamp(0, chunk.size(1)))
        start += size
    return state


@st.composite
def cases(draw, max_frames=12, max_vocab_size=9):
    """Draw sizes and seed of a random head, encoder outputs of several streams, and chunk sizes."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    lens = torch.tensor(draw(st.lists(st.integers(1, max_frames), min_size=1, max_size=4)))
    num_frames = int(lens.max())
    sizes = draw(st.lists(st.integers(0, 5), max_size=6))
    sizes.append(max(0, num_frames - sum(sizes)))
    return {
        "vocab_size": draw(st.integers(2, max_vocab_size)),
        "context_size": draw(st.integers(1, 3)),
        "beam_size": draw(st.integers(1, 5)),
        "blank_penalty": draw(st.sampled_from([0.0, 1.5])),
        "seed": draw(st.integers(0, 10**6)),
        "encoder_out": torch.randn(len(lens), num_frames, 8) * 2,
        "lens": lens,
        "sizes": sizes,
    }


def make_case_head(make_head, case):
    return make_head(case["vocab_size"], case["seed"], context_size=case["context_size"])


@torch.no_grad()
def token_log_probs(head, frame, tokens, blank_penalty=0.0):
    """Return log-probabilities (V,) for a frame (D,) and a list of previous tokens."""
    context_size = head.decoder.context_size
    context = ([-1] * (context_size - 1) + [0, *tokens])[-context_size:]
    logits = head.joiner(frame, head.decoder(torch.tensor([context]), need_pad=False)[0, 0])
    logits[0] -= blank_penalty
    return logits.log_softmax(dim=-1).tolist()


def all_paths(head, frames, blank_penalty=0.0):
    """Return all paths with one token or blank per frame (T, D): path -> log-probability."""
    paths = {}
    for path in itertools.product(range(head.joiner.output_linear.out_features), repeat=len(frames)):
        log_prob = 0.0
        for t, token in enumerate(path):
            previous = [earlier for earlier in path[:t] if earlier]
            log_prob += token_log_probs(head, frames[t], previous, blank_penalty)[token]
        paths[path] = log_prob
    return paths


def all_sequences(paths):
    """Sum the paths of `all_paths` per token sequence: token sequence -> log-probability."""
    totals = defaultdict(float)
    for path, log_prob in paths.items():
        totals[tuple(token for token in path if token)] += math.exp(log_prob)
    return {tokens: math.log(total) for tokens, total in totals.items()}


def plain_beam_search(head, frames, beam_size, blank_penalty=0.0, bonus=lambda tokens: 0.0):
    """Run modified beam search on one utterance with a dict as beam; return token sequence -> log-probability."""
    beam = {(): 0.0}
    for frame in frames:
        expanded = []
        for tokens, log_prob in beam.items():
            for token, added in enumerate(token_log_probs(head, frame, tokens, blank_penalty)):
                expanded.append(((*tokens, token) if token else tokens, log_prob + added))
        expanded.sort(key=lambda entry: -(entry[1] + bonus(entry[0])))
        beam = {}
        for tokens, log_prob in expanded[:beam_size]:
            beam[tokens] = math.log(math.exp(beam[tokens]) + math.exp(log_prob)) if tokens in beam else log_prob
    return beam


@dataclass
class ScriptedState(SearchState):
    num_frames: Tensor

    def split(self):
        return [ScriptedState(count) for count in self.num_frames.split(1)]

    def _join(self, states):
        return ScriptedState(torch.cat([state.num_frames for state in states]))


class ScriptedSearch(Search[ScriptedState]):
    """A search with scripted results: `script` maps the number of frames of a stream to its hypothesis."""

    def __init__(self, model, script):
        super().__init__(model)
        self.script = script

    def init(self, batch_size):
        return ScriptedState(torch.zeros(batch_size, dtype=torch.int64))

    def advance(self, state, encoder_out, lens):
        return ScriptedState(state.num_frames + lens)

    def results(self, state):
        return [self.script(count) for count in state.num_frames.tolist()]

    def n_best(self, state):
        return [[hypothesis] for hypothesis in self.results(state)]

    def stable_lengths(self, state):
        return [0] * len(state.num_frames)

    def reset_hypothesis(self, state):
        return state
