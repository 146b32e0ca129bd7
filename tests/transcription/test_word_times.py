"""Times of words, of which only the emission of their tokens is known."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icefall_pathways.decoding.streaming import FRAME_SECONDS
from icefall_pathways.transcription.transcript import word_times

INFINITY = float("inf")
MAX_TAIL = 0.4


@st.composite
def emissions(draw: st.DrawFn) -> list[tuple[float, float]]:
    """Draw the frames of the first and the last token of words: at most one token per frame."""
    words = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=8))
    firsts_and_lasts = accumulate(frames for word in words for frames in word)
    times = [frame * FRAME_SECONDS for frame in firsts_and_lasts]
    return list(zip(times[::2], times[1::2], strict=True))


@given(emissions(), st.floats(0, 30) | st.just(INFINITY), st.floats(0, 30))
def test_words_do_not_overlap_and_end_within_their_bounds(
    words: list[tuple[float, float]], speech_end: float, segment_end: float
) -> None:
    spans = word_times(words, speech_end, segment_end)
    assert len(spans) == len(words)
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start
    for (first, last), (start, end) in zip(words, spans, strict=True):
        emitted = last + FRAME_SECONDS
        assert start == min(first, segment_end) <= end <= segment_end
        assert end <= emitted + MAX_TAIL
        assert end <= max(speech_end, emitted)


def test_a_word_ends_at_the_first_of_its_bounds() -> None:
    """The next word, 0.4 s after the last token, the end of the speech, the end of the segment."""
    words = [(1.0, 1.2), (1.4, 1.4), (3.0, 3.4)]
    next_word, maximum = (1.0, 1.4), (1.4, pytest.approx(1.84))
    assert word_times(words, INFINITY, 9.0) == [next_word, maximum, (3.0, pytest.approx(3.84))]
    assert word_times(words, 3.6, 4.4) == [next_word, maximum, (3.0, 3.6)]
    assert word_times(words, 3.7, 3.5) == [next_word, maximum, (3.0, 3.5)]


def test_a_token_that_is_emitted_after_the_speech_extends_its_word() -> None:
    assert word_times([(2.0, 2.6)], 2.3, 3.1) == [(2.0, pytest.approx(2.6 + FRAME_SECONDS))]
