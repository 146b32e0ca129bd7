"""Random encoder outputs for searches, and searches written plainly to compare with."""

import itertools
import math
from collections import defaultdict

import torch
from hypothesis import strategies as st


def run(search, encoder_out, lens, sizes=None):
    """Decode in pieces of the given sizes; a stream that ends inside a piece has a shorter length there."""
    state = search.init(encoder_out.size(0))
    start = 0
    for size in sizes or [encoder_out.size(1)]:
        piece = encoder_out[:, start : start + size]
        state = search.advance(state, piece, (lens - start).clamp(0, piece.size(1)))
        start += size
    return state


@st.composite
def cases(draw, max_frames=12, max_vocab_size=9):
    """The sizes and seed of a random head, encoder outputs of several streams, and a way to cut them."""
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
    """Log-probabilities (V,) after a frame (D,) and a list of tokens."""
    context_size = head.decoder.context_size
    context = ([-1] * (context_size - 1) + [0, *tokens])[-context_size:]
    logits = head.joiner(frame, head.decoder(torch.tensor([context]), need_pad=False)[0, 0])
    logits[0] -= blank_penalty
    return logits.log_softmax(dim=-1).tolist()


def all_paths(head, frames, blank_penalty=0.0):
    """Every way to take one token or blank per frame (T, D): path -> log-probability."""
    found = {}
    for path in itertools.product(range(head.joiner.output_linear.out_features), repeat=len(frames)):
        log_prob = 0.0
        for t, token in enumerate(path):
            before = [earlier for earlier in path[:t] if earlier]
            log_prob += token_log_probs(head, frames[t], before, blank_penalty)[token]
        found[path] = log_prob
    return found


def all_sequences(paths):
    """From `all_paths`: token sequence -> log-probability of all its paths."""
    totals = defaultdict(float)
    for path, log_prob in paths.items():
        totals[tuple(token for token in path if token)] += math.exp(log_prob)
    return {tokens: math.log(total) for tokens, total in totals.items()}


def plain_beam_search(head, frames, beam_size, blank_penalty=0.0, bonus=lambda tokens: 0.0):
    """Modified beam search with a dict: token sequence -> log-probability, in a list sorted by what is chosen by."""
    beam = {(): 0.0}
    for frame in frames:
        grown = []
        for tokens, log_prob in beam.items():
            for token, more in enumerate(token_log_probs(head, frame, tokens, blank_penalty)):
                grown.append(((*tokens, token) if token else tokens, log_prob + more))
        grown.sort(key=lambda entry: -(entry[1] + bonus(entry[0])))
        beam = {}
        for tokens, log_prob in grown[:beam_size]:
            beam[tokens] = math.log(math.exp(beam[tokens]) + math.exp(log_prob)) if tokens in beam else log_prob
    return beam
