"""Voice activity detection: complete regions of speech, each decoded on its own, in streams of any block size."""

import importlib.util
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_models import make_model
from torch import Tensor
from window_scorer import WindowScorer

from icefall_pathways.corpora.mini_speech import Synthesizer, draw_speakers, synthesize_utterance
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import (
    Recognizer,
    Result,
    StreamingDecoder,
    VadError,
    make_gate,
    voice_activity,
)
from icefall_pathways.decoding.streaming.voice_activity import Silero, SpeechBlock, SpeechGate
from icefall_pathways.languages import get_language
from icefall_pathways.models.transducer import Transducer
from icefall_pathways.searches import GreedySearch

WINDOW = 512
PRE_ROLL, HANGOVER = 16, 25  # windows


def is_loud(window: object) -> float:
    """Score a window by its first sample, which tests set to 1 for speech."""
    return float(window[0])  # type: ignore[index]


def signal(speech: list[bool], tail: int = 0) -> Tensor:
    """Return samples whose values are their positions, except the first one of a window, which marks speech."""
    samples = torch.arange(2, 2 + WINDOW * len(speech) + tail, dtype=torch.float32)
    samples[: WINDOW * len(speech) : WINDOW] = torch.tensor(speech, dtype=torch.float32)
    return samples


def regions(blocks: list[SpeechBlock]) -> list[tuple[int, Tensor]]:
    """Return the start and the samples of each region; check that blocks follow each other."""
    pieces: list[tuple[int, Tensor]] = []
    is_open = False
    for block in blocks:
        assert block.is_first != is_open
        start, samples = (block.start, torch.empty(0)) if block.is_first else pieces.pop()
        assert block.start == start + samples.numel()
        pieces.append((start, torch.cat([samples, block.samples])))
        is_open = not block.is_last
    assert not is_open
    return pieces


def gated(samples: Tensor, sizes: list[int]) -> list[tuple[int, Tensor]]:
    gate, blocks = SpeechGate(WindowScorer(is_loud)), []
    for block in samples.split(sizes):
        blocks += gate.accept(block)
    pieces = regions(blocks + gate.flush())
    assert gate.num_samples == sum(samples.numel() for _, samples in pieces)
    return pieces


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=6), st.integers(0, WINDOW - 1), st.randoms())
@settings(deadline=None, max_examples=50)
def test_regions_cover_speech_with_its_surroundings(
    runs: list[tuple[bool, int]], tail: int, rng: random.Random
) -> None:
    speech = [is_speech for is_speech, length in runs for _ in range(length)]
    samples = signal(speech, tail)
    pieces = gated(samples, [samples.numel()])
    covered = [False] * len(speech)
    for start, content in pieces:
        assert torch.equal(content, samples[start : start + content.numel()])
        for index in range(start // WINDOW, min(len(speech), (start + content.numel()) // WINDOW)):
            assert not covered[index]
            covered[index] = True
    for index, is_speech in enumerate(speech):
        near = speech[max(0, index - HANGOVER) : index + PRE_ROLL + 1]
        assert covered[index] or not is_speech
        assert covered[index] == any(near)
    sizes: list[int] = []
    while sum(sizes) < samples.numel():
        sizes.append(min(rng.randint(1, 3000), samples.numel() - sum(sizes)))
    for (start, content), (other_start, other) in zip(gated(samples, sizes), pieces, strict=True):
        assert start == other_start and torch.equal(content, other)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=6), st.integers(0, WINDOW - 1))
@settings(deadline=None, max_examples=50)
def test_regions_state_where_their_speech_ends(runs: list[tuple[bool, int]], tail: int) -> None:
    """Without a score, a tail of less than a window is speech if it follows speech."""
    speech = [is_speech for is_speech, length in runs for _ in range(length)]
    gate = SpeechGate(WindowScorer(is_loud))
    ends = [block.speech_end for block in gate.accept(signal(speech, tail)) + gate.flush() if block.is_last]
    expected = [
        index * WINDOW + (tail if index == len(speech) else 0)
        for index in range(1, len(speech) + 1)
        if speech[index - 1] and not any(speech[index : index + HANGOVER])
    ]
    assert ends == expected


@pytest.fixture(scope="module")
def utterances() -> list[Tensor]:
    rng = random.Random(1)
    texts = {"en": "twenty one seven", "fr": "dix sept quatre", "it": "otto ventidue", "nl": "vijf tien"}
    return [
        torch.from_numpy(synthesize_utterance(Synthesizer(), text, draw_speakers(get_language(code), 1)[0], 1, rng))
        for code, text in texts.items()
    ]


@pytest.mark.parametrize("gain", [0, -30])
@pytest.mark.parametrize("noise", [0.0, 0.001])
def test_silero_detects_speech_within_the_pre_roll_and_no_noise(
    utterances: list[Tensor], gain: float, noise: float
) -> None:
    for samples in utterances:
        silence = noise * torch.randn(48000)
        gate = make_gate("silero")
        assert gate is not None
        scaled = 10 ** (gain / 20) * torch.cat([silence, samples, silence])
        pieces = regions(gate.accept(scaled) + gate.flush())
        assert len(pieces) == 1
        start, content = pieces[0]
        assert 48000 - 16000 < start <= 48000 and start + content.numel() >= 48000 + samples.numel()


@pytest.mark.parametrize("seconds", [0.3, 1, 3])
@pytest.mark.parametrize("level", [None, -60, -45])
def test_silero_passes_on_speech_between_silence_or_noise(
    utterances: list[Tensor], level: float | None, seconds: float
) -> None:
    """Before, between and after utterances; at most one and a half seconds of what surrounds each."""
    amplitude = 0.0 if level is None else 10 ** (level / 20)
    silence = lambda: amplitude * torch.randn(round(16000 * seconds))  # noqa: E731
    parts = [part for samples in utterances[:2] for part in (silence(), samples)]
    starts = [sum(part.numel() for part in parts[:index]) for index in (1, 3)]
    gate = make_gate("silero")
    assert gate is not None
    pieces = regions(gate.accept(torch.cat([*parts, silence()])) + gate.flush())
    spans = [(start, start + samples.numel()) for start, samples in pieces]
    for start, samples in zip(starts, utterances, strict=False):
        # Synthesized utterances start and end with up to 0.1 s of silence.
        assert any(first <= start + 1600 and start + samples.numel() - 1600 <= last for first, last in spans)
    if seconds == 3:
        assert len(spans) == 2
        for (first, last), start, samples in zip(spans, starts, utterances, strict=False):
            assert first > start - 24000 and last < start + samples.numel() + 24000


def reference_scores(windows: np.ndarray) -> list[float]:
    """Score the windows (n, 512) of one stream one by one."""
    session, scores, level = voice_activity._load_session(), [], 0.0
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    for window in windows:
        level = max(0.995 * level, float(np.sqrt((window**2).mean())))
        scaled = np.float32(min(10**1.5, max(1.0, 0.1 / level))) * window
        inputs = {"input": np.concatenate([context, scaled])[None], "state": state, "sr": np.array(16000)}
        (((score,),), state), context = session.run(None, inputs), scaled[-64:]
        scores.append(score)
    return scores


def test_scores_of_silero_do_not_depend_on_the_batch(utterances: list[Tensor]) -> None:
    """The streams have different levels and numbers of windows."""
    silero, gains = Silero(), (0.01, 1.0, 0.5, 0.1)
    parts = [gain * samples[: WINDOW * 19] for gain, samples in zip(gains, utterances, strict=True)]
    windows = [samples.view(-1, WINDOW).numpy() for samples in parts]
    windows[2] = windows[2][:0]
    states, scored = [silero.new_state() for _ in windows], [[] for _ in windows]  # type: ignore[var-annotated]
    for sizes in ((3, 5, 0, 4), (10, 9, 0, 13), (6, 5, 0, 2)):
        starts = map(len, scored)
        blocks = [stream[start : start + size] for stream, start, size in zip(windows, starts, sizes, strict=True)]
        scores = silero.score(blocks, states)
        states = [score.state for score in scores]
        for stream, score in zip(scored, scores, strict=True):
            stream.extend(score.probabilities)
    for stream, scores_of_stream in zip(windows, scored, strict=True):
        assert scores_of_stream == pytest.approx(reference_scores(stream), abs=1e-6)
    assert [len(stream) for stream in scored] == [19, 19, 0, 19]
    assert min(max(stream) for stream in scored if stream) > 0.5


def test_no_gate_without_voice_activity_detection() -> None:
    assert make_gate("none") is None


def test_error_of_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    voice_activity._load_session.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(VadError, match="silero-vad is not installed: install it, or use --vad none"):
        make_gate("silero")


@pytest.fixture
def emformer() -> Transducer:
    model: Transducer = make_model("emformer")
    return model


def run(recognizer: Recognizer, samples: Tensor, size: int) -> list[Result]:
    """Return the results of a session that receives blocks of `size` samples, advanced after every third block."""
    session, results = recognizer.open(), []
    for index, block in enumerate(samples.split(size)):
        session.accept_samples(block)
        if index % 3 == 2:
            results += advance(recognizer, session)
    session.finish()
    return results + advance(recognizer, session)


def advance(recognizer: Recognizer, session: object) -> list[Result]:
    results = []
    while recognizer.is_ready(session):  # type: ignore[arg-type]
        results += [result for _, result in recognizer.advance([session])]  # type: ignore[list-item]
    return results


@pytest.mark.parametrize("size", [700, 5000, 10**6])
def test_every_region_is_decoded_on_its_own(emformer: Transducer, size: int) -> None:
    bursts = torch.randn(3, 16384) * 0.1 * (torch.arange(16384) // 1000 % 3 + 0.01)
    silence = torch.zeros(WINDOW * 100)
    loud = lambda window: float(abs(window).max() > 1e-4)  # noqa: E731
    decoder = StreamingDecoder(emformer, GreedySearch(emformer), FbankConfig())
    recognizer = Recognizer(decoder, make_gate=lambda: SpeechGate(WindowScorer(loud)))
    samples = torch.cat([part for burst in bursts for part in (silence, burst)] + [silence])
    all_results = run(recognizer, samples, size)
    assert all(math.isinf(result.speech_end) for result in all_results if not result.is_final)
    results = [result for result in all_results if result.is_final]
    texts, audio_end = [result for result in results if result.tokens], samples.numel() / 16000
    assert len(texts) == 3 and results[-1].is_last and not any(result.is_last for result in results[:-1])
    for index, (burst, result) in enumerate(zip(bursts, texts, strict=True)):
        region = torch.cat([silence[: WINDOW * PRE_ROLL], burst, silence[: WINDOW * HANGOVER]])
        expected = [r for r in run(Recognizer(decoder), region, size) if r.is_final]
        assert result.tokens == [token for r in expected for token in r.tokens]
        start = (silence.numel() * (index + 1) + burst.numel() * index - WINDOW * PRE_ROLL) / 16000
        assert result.times == pytest.approx([start + time for r in expected for time in r.times])
        assert result.start == pytest.approx(start + expected[0].start)
        assert start < result.end <= (audio_end if result.is_last else start + region.numel() / 16000)
        assert result.speech_end == (silence.numel() * (index + 1) + burst.numel() * (index + 1)) / 16000
    assert results[-1].end == audio_end
    assert all(math.isinf(result.speech_end) for result in results if not result.tokens)  # in silence
    assert results[-1].speech_seconds == 3 * region.numel() / 16000


def test_audio_without_speech_has_one_empty_result(emformer: Transducer) -> None:
    decoder = StreamingDecoder(emformer, GreedySearch(emformer), FbankConfig())
    recognizer = Recognizer(decoder, make_gate=lambda: SpeechGate(WindowScorer(lambda window: 0.0)))
    (result,) = run(recognizer, torch.randn(50000) * 0.1, 1000)
    assert (result.tokens, result.is_last, result.speech_seconds, result.end) == ([], True, 0.0, 3.125)
