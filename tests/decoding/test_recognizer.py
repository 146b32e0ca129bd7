"""Sessions: languages mixed, results that grow, segments, and audio that is none."""

import math

import pytest
import torch
from all_layer_types import random_masks
from stream_models import make_model

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.streaming import (
    AudioError,
    EndpointConfig,
    Recognizer,
    Source,
    StreamingDecoder,
)
from icefall_pathways.pathways.activation import FoldedPathways, activate
from icefall_pathways.searches import FastBeamSearch, GreedySearch, Hypothesis, ModifiedBeamSearch

LANGUAGES = ("en", "fr", "it")
NEVER = 1e9


@pytest.fixture(params=["emformer-memory", "zipformer"])
def model(request):
    return make_model(request.param)


@pytest.fixture
def emformer():
    return make_model("emformer")


def _decoder(model, search=GreedySearch, masks=None):
    searches = {language: search(model) for language in LANGUAGES}
    return StreamingDecoder(model, searches, FbankConfig(), FoldedPathways(model, masks))


def _speech(seconds):
    samples = torch.randn(int(16000 * seconds)) * 0.1
    return samples * (torch.arange(len(samples)) // 1000 % 3 + 0.01)


def _run(recognizer, session, samples, piece=1600):
    """All results of one session that hears `samples` in pieces."""
    results = []
    for part in samples.split(piece):
        session.accept_samples(part)
        results += _results(recognizer, session)
    session.finish()
    return results + _results(recognizer, session)


def _results(recognizer, session):
    results = []
    while recognizer.is_ready(session):
        results += [result for _, result in recognizer.advance([session])]
    return results


def _tokens(results):
    return [token for result in results if result.is_final for token in result.tokens]


def test_languages_mixed_in_one_server_do_not_meet(model):
    masks = random_masks(model, LANGUAGES, density=0.7)
    speakers = [(LANGUAGES[i % 3], _speech(0.6 + 0.2 * i)) for i in range(3)]
    sources = [Source(i, samples.split(1000), language) for i, (language, samples) in enumerate(speakers)]
    decoder = _decoder(model, masks=masks)
    decoder.compile(["fr"])
    found = dict(decoder.decode(sources, num_streams=2))
    for i, (language, samples) in enumerate(speakers):
        with activate(model, masks, language):
            plain = StreamingDecoder(model, GreedySearch(model), FbankConfig())
            alone = dict(plain.decode([Source(i, [samples])], 1))
        assert found[i].tokens == alone[i].tokens
    assert len({tuple(hypothesis.tokens) for hypothesis in found.values()}) == 3


def test_a_speaker_who_comes_late_or_leaves_changes_nothing_for_the_others(emformer):
    recognizer = Recognizer(_decoder(emformer))
    staying, leaving, late = (recognizer.open(language) for language in LANGUAGES)
    samples, results = _speech(2.0), []
    for number, part in enumerate(samples.split(2560)):
        staying.accept_samples(part)
        everybody = [staying]
        if number < 4:
            leaving.accept_samples(_speech(0.16))
            everybody.append(leaving)
        if number > 2:
            late.accept_samples(_speech(0.16))
            everybody.append(late)
        results += [result for session, result in recognizer.advance(everybody) if session is staying]
    staying.finish()
    results += _results(recognizer, staying)
    alone = Recognizer(_decoder(emformer))
    assert _tokens(results) == _tokens(_run(alone, alone.open("en"), samples)) != []


@pytest.mark.parametrize("search", [GreedySearch, ModifiedBeamSearch, FastBeamSearch])
def test_what_is_shown_changes_only_where_it_is_marked(emformer, search):
    recognizer = Recognizer(_decoder(emformer, search))
    results = _run(recognizer, recognizer.open("en"), _speech(3.0))
    shown, promised = [], 0
    for result in results:
        assert result.tokens[: result.unchanged] == shown[: result.unchanged]
        assert result.revised == (result.unchanged < len(shown))
        assert result.unchanged >= promised
        assert result.stable >= promised
        assert result.times == sorted(result.times)
        shown, promised = result.tokens, result.stable
    assert [result.is_final for result in results] == [False] * (len(results) - 1) + [True]
    assert results[-1].stable == len(results[-1].tokens) > 5
    partial = results[len(results) // 2]
    expected = {GreedySearch: len(partial.tokens), FastBeamSearch: 0}
    assert partial.stable == expected.get(search, partial.stable)


def test_beam_search_promises_some_tokens_early_and_revises_others():
    stable = revised = 0
    for seed in range(2):
        torch.manual_seed(seed)
        recognizer = Recognizer(_decoder(make_model("emformer"), ModifiedBeamSearch))
        results = _run(recognizer, recognizer.open("en"), _speech(3.0))
        stable += sum(result.stable for result in results[:-1])
        revised += sum(result.revised for result in results)
        assert any(result.stable < len(result.tokens) for result in results)
    assert stable > 0
    assert revised > 0


def test_cutting_long_segments_loses_and_changes_nothing(model):
    samples = _speech(1.8)
    whole, cutting = Recognizer(_decoder(model)), Recognizer(_decoder(model), EndpointConfig(NEVER, NEVER, 0.6))
    expected = _run(whole, whole.open("en"), samples)[-1]
    results = [result for result in _run(cutting, cutting.open("en"), samples) if result.is_final]
    assert len(results) > 2
    assert [result.segment for result in results] == list(range(len(results)))
    assert [result.start for result in results[1:]] == [result.end for result in results[:-1]]
    assert _tokens(results) == expected.tokens != []
    assert [time for result in results for time in result.times] == pytest.approx(expected.times)


def test_pauses_end_segments(emformer, monkeypatch):
    decoder = _decoder(emformer)
    recognizer = Recognizer(decoder, EndpointConfig(2.4, 1.2, NEVER))

    def results(streams):
        """One token, in the tenth frame, in the first segment alone."""
        heard = [12 <= stream.num_frames <= 40 for stream in streams]
        return [Hypothesis([5], [9], -1.0) if one else Hypothesis([], [], -1.0) for one in heard]

    monkeypatch.setattr(decoder, "results", results)
    finals = [result for result in _run(recognizer, recognizer.open("fr"), _speech(5.0)) if result.is_final]
    # The token's frame ends 0.4 s after the beginning, and 1.2 s of silence behind it with the tenth chunk of 0.16 s.
    assert [result.tokens for result in finals] == [[5], [], []]
    assert [result.end for result in finals] == pytest.approx([1.6, 4.0, 5.0])


def test_what_a_model_finds_in_silence_is_not_shown(emformer):
    """Neither in a silent stream, nor in the pauses of another, whose speech is recognised."""
    endpoints = EndpointConfig(0.5, 0.4, 0.8)
    recognizer = Recognizer(_decoder(emformer), endpoints)
    noise = torch.randn(32000) * 1e-4
    silent = _run(recognizer, recognizer.open("en"), noise)
    assert [result.tokens for result in silent] == [[]] * len(silent)
    (found,) = [hypothesis for _, hypothesis in recognizer.decoder.decode([Source(0, [noise], "en")], 1)]
    assert found.tokens != []
    results = _run(recognizer, recognizer.open("en"), torch.cat([noise, _speech(1.0), noise]))
    spoken = [time for result in results if result.is_final for time in result.times]
    assert 1.2 < min(spoken) <= max(spoken) < 4.1


def test_endpoint_rules():
    rules = EndpointConfig()
    assert not rules.is_pause(nonsilence=False, trailing_silence=2.3)
    assert rules.is_pause(nonsilence=False, trailing_silence=2.4)
    assert rules.is_pause(nonsilence=True, trailing_silence=1.2)
    assert not rules.is_pause(nonsilence=True, trailing_silence=1.1)
    assert rules.is_too_long(20.0)
    assert not rules.is_too_long(19.9)
    with pytest.raises(ValueError, match="--rule2-min-trailing-silence 0"):
        EndpointConfig(rule2_min_trailing_silence=0.0)


BROKEN = {
    "NaN": torch.full((1600,), torch.nan),
    "infinity": torch.tensor([0.1, torch.inf]),
    "integers": torch.randint(-30000, 30000, (1600,)).float(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_audio_that_is_none_disturbs_nobody(emformer, kind):
    """Neither the other streams of a batch, nor the session itself, which goes on with the next samples."""
    samples = _speech(1.0)
    decoder = _decoder(emformer)
    good = [Source(i, samples.split(1000), "en") for i in range(2)]
    errors = []
    sources = [good[0], Source("broken", [samples[:4000], BROKEN[kind], samples], "en"), good[1]]
    found = dict(decoder.decode(sources, 3, on_error=lambda key, error: errors.append((key, str(error)))))
    assert [key for key, _ in errors] == ["broken"]
    assert ("not finite" in errors[0][1]) == (kind != "integers")
    assert "32768" in errors[0][1]
    assert found.keys() == {0, 1}
    with pytest.raises(AudioError):
        dict(decoder.decode(sources, 3))
    recognizer = Recognizer(decoder)
    session = recognizer.open("en")
    with pytest.raises(AudioError):
        session.accept_samples(BROKEN[kind])
    assert _tokens(_run(recognizer, session, samples)) == found[0].tokens == found[1].tokens != []


@pytest.mark.parametrize("samples", [0, 1, 160, 399, 16000])
def test_hardly_any_audio_and_silence(model, samples):
    recognizer = Recognizer(_decoder(model, ModifiedBeamSearch), EndpointConfig())
    results = _run(recognizer, recognizer.open("en"), torch.zeros(samples))
    assert [result.is_final for result in results].count(True) == 1
    assert results[-1].end == pytest.approx(math.ceil((samples + 80) // 160 / 4) * 0.04)


def test_clipped_audio_is_recognised(emformer):
    recognizer = Recognizer(_decoder(emformer))
    clipped = (_speech(1.0) * 100).clamp(-1, 1)
    assert _tokens(_run(recognizer, recognizer.open("en"), clipped)) != []


def _held(session):
    """Numbers that a session holds on to."""
    stream = session.candidates[0]
    tensors = [
        stream.features,
        stream.fbank._samples,
        *stream.state.encoder_states,
        *vars(stream.search_state).values(),
    ]
    return sum(tensor.storage().nbytes() for tensor in tensors) + 8 * len(session.previous_tokens)


def test_what_is_held_does_not_grow_with_the_audio(emformer):
    recognizer = Recognizer(_decoder(emformer, ModifiedBeamSearch), EndpointConfig(rule3_min_utterance_length=0.8))
    session = recognizer.open("en")
    held, tokens = [], 0
    for _ in range(40):
        session.accept_samples(_speech(0.16))  # a chunk
        for result in _results(recognizer, session):
            if result.is_final:
                tokens += len(result.tokens)
                held.append(_held(session))
    assert tokens > 20
    assert len(held) > 5
    assert set(held[1:]) == {held[1]}


def test_an_unknown_language(emformer):
    recognizer = Recognizer(_decoder(emformer))
    with pytest.raises(ValueError, match="'xx': expected one of en, fr, it"):
        recognizer.open("xx")
    with pytest.raises(ValueError, match="name it"):
        recognizer.open(None)
