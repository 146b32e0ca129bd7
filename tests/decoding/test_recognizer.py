"""Recognition sessions: mixed languages, partial results, segments, and invalid audio."""

from functools import partial

import pytest
import torch
from all_layer_types import random_masks
from optional_packages import needs_k2
from search_cases import ScriptedSearch
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
from icefall_pathways.torch_compat import num_storage_bytes

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


def _run(recognizer, session, samples, block=1600):
    """Return all results of a session that receives `samples` in blocks."""
    results = []
    for part in samples.split(block):
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


def test_languages_in_one_decoder_do_not_interact(model):
    masks = random_masks(model, LANGUAGES, density=0.7)
    utterances = [(LANGUAGES[i % 3], _speech(0.6 + 0.2 * i)) for i in range(3)]
    sources = [Source(i, samples.split(1000), language) for i, (language, samples) in enumerate(utterances)]
    decoder = _decoder(model, masks=masks)
    hypotheses = dict(decoder.decode(sources, num_streams=2))
    for i, (language, samples) in enumerate(utterances):
        with activate(model, masks, language):
            single = StreamingDecoder(model, GreedySearch(model), FbankConfig())
            expected = dict(single.decode([Source(i, [samples])], 1))
        assert hypotheses[i].tokens == expected[i].tokens
    assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses.values()}) == 3


def test_sessions_that_open_or_close_do_not_change_other_sessions(emformer):
    recognizer = Recognizer(_decoder(emformer))
    session, early, late = (recognizer.open(language) for language in LANGUAGES)
    samples, results = _speech(2.0), []
    for index, block in enumerate(samples.split(2560)):
        session.accept_samples(block)
        active = [session]
        if index < 4:
            early.accept_samples(_speech(0.16))
            active.append(early)
        if index > 2:
            late.accept_samples(_speech(0.16))
            active.append(late)
        results += [result for other, result in recognizer.advance(active) if other is session]
    session.finish()
    results += _results(recognizer, session)
    single = Recognizer(_decoder(emformer))
    assert _tokens(results) == _tokens(_run(single, single.open("en"), samples)) != []


@pytest.mark.parametrize("search", [GreedySearch, ModifiedBeamSearch, pytest.param(FastBeamSearch, marks=needs_k2)])
def test_partial_results_keep_the_stable_prefix(emformer, search):
    recognizer = Recognizer(_decoder(emformer, search))
    results = _run(recognizer, recognizer.open("en"), _speech(3.0))
    previous, stable = [], 0
    for result in results:
        assert result.tokens[: result.unchanged] == previous[: result.unchanged]
        assert result.revised == (result.unchanged < len(previous))
        assert result.unchanged >= stable
        assert result.stable >= stable
        assert result.times == sorted(result.times)
        previous, stable = result.tokens, result.stable
    assert [result.is_final for result in results] == [False] * (len(results) - 1) + [True]
    assert results[-1].stable == len(results[-1].tokens) > 5
    middle = results[len(results) // 2]
    expected = {GreedySearch: len(middle.tokens), FastBeamSearch: 0}
    assert middle.stable == expected.get(search, middle.stable)


def test_beam_search_has_stable_and_revised_tokens():
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


def test_segmentation_in_speech_does_not_change_the_tokens(model):
    samples = _speech(1.8)
    whole, segmenting = Recognizer(_decoder(model)), Recognizer(_decoder(model), EndpointConfig(NEVER, NEVER, 0.6))
    expected = _run(whole, whole.open("en"), samples)[-1]
    results = [result for result in _run(segmenting, segmenting.open("en"), samples) if result.is_final]
    assert len(results) > 2
    assert [result.segment for result in results] == list(range(len(results)))
    assert [result.start for result in results[1:]] == [result.end for result in results[:-1]]
    assert _tokens(results) == expected.tokens != []
    assert [time for result in results for time in result.times] == pytest.approx(expected.times)


def test_incomplete_words_move_to_the_next_segment_with_their_times_and_log_probs(emformer):
    samples, decoder = _speech(1.8), _decoder(emformer)
    whole = Recognizer(decoder)
    segmenting = Recognizer(decoder, EndpointConfig(NEVER, NEVER, 0.6), is_word_start=lambda token: token % 3 == 0)
    expected = _run(whole, whole.open("en"), samples)[-1]
    finals = [result for result in _run(segmenting, segmenting.open("en"), samples) if result.is_final]
    assert any(result.tokens and result.tokens[0] % 3 == 0 for result in finals[1:])
    assert _tokens(finals) == expected.tokens
    assert [time for result in finals for time in result.times] == pytest.approx(expected.times)
    log_probs = [log_prob for result in finals for log_prob in result.log_probs]
    assert log_probs == pytest.approx(expected.log_probs, abs=1e-4) and len(log_probs) == len(expected.tokens)


def test_pauses_end_segments(emformer):
    def script(num_frames):
        """Return one token, in the tenth frame of the first segment."""
        return Hypothesis([5], [9], -1.0) if 12 <= num_frames <= 40 else Hypothesis([], [], -1.0)

    decoder = _decoder(emformer, partial(ScriptedSearch, script=script))
    recognizer = Recognizer(decoder, EndpointConfig(2.4, 1.2, NEVER))
    finals = [result for result in _run(recognizer, recognizer.open("fr"), _speech(5.0)) if result.is_final]
    # The token ends at 0.4 s; the tenth chunk of 0.16 s completes 1.2 s of silence after it.
    assert [result.tokens for result in finals] == [[5], [], []]
    assert [result.end for result in finals] == pytest.approx([1.6, 4.0, 5.0])


def test_tokens_in_silence_are_dropped(emformer):
    """In a silent stream, and in the pauses of a stream with speech."""
    endpoints = EndpointConfig(0.5, 0.4, 0.8)
    recognizer = Recognizer(_decoder(emformer), endpoints)
    noise = torch.randn(32000) * 1e-4
    silent = _run(recognizer, recognizer.open("en"), noise)
    assert [result.tokens for result in silent] == [[]] * len(silent)
    ((_, hypothesis),) = recognizer.decoder.decode([Source(0, [noise], "en")], 1)
    assert hypothesis.tokens != []
    results = _run(recognizer, recognizer.open("en"), torch.cat([noise, _speech(1.0), noise]))
    spoken = [time for result in results if result.is_final for time in result.times]
    assert 1.2 < min(spoken) <= max(spoken) < 4.1


@pytest.mark.parametrize("seconds", [0.3, 1, 3])
@pytest.mark.parametrize("amplitude", [0.0, 1e-4])
@pytest.mark.parametrize("language", ["en", None])
def test_tokens_before_the_first_speech_are_discarded(emformer, language, amplitude, seconds):
    """They are neither shown later, nor the predictor context of the speech; also before a language is identified."""

    def select(candidates, audio_seconds, ended):
        return candidates[0] if audio_seconds > 0.5 or ended else None

    recognizer = Recognizer(_decoder(emformer), EndpointConfig(), select)
    silence = torch.randn(int(16000 * seconds)) * amplitude
    results = _run(recognizer, recognizer.open(language), torch.cat([silence, _speech(1.0)]))
    assert results[-1].tokens
    assert all(not result.tokens for result in results if result.end <= seconds)
    chunk = 0.16  # tokens of the chunk in which the speech starts cannot be distinguished from those of the speech
    assert min(results[-1].times) >= seconds - chunk


def test_endpoint_rules_apply_at_their_thresholds():
    rules = EndpointConfig()
    assert not rules.is_pause(nonsilence=False, trailing_silence=2.3)
    assert rules.is_pause(nonsilence=False, trailing_silence=2.4)
    assert rules.is_pause(nonsilence=True, trailing_silence=1.2)
    assert not rules.is_pause(nonsilence=True, trailing_silence=1.1)
    assert rules.is_too_long(20.0)
    assert not rules.is_too_long(19.9)
    with pytest.raises(ValueError, match="--rule2-min-trailing-silence is 0"):
        EndpointConfig(rule2_min_trailing_silence=0.0)


BROKEN = {
    "NaN": torch.full((1600,), torch.nan),
    "infinity": torch.tensor([0.1, torch.inf]),
    "integers": torch.randint(-30000, 30000, (1600,)).float(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_invalid_audio_does_not_affect_other_streams(emformer, kind):
    """A session drops invalid samples and continues with the next ones."""
    samples = _speech(1.0)
    decoder = _decoder(emformer)
    good = [Source(i, samples.split(1000), "en") for i in range(2)]
    errors = []
    sources = [good[0], Source("broken", [samples[:4000], BROKEN[kind], samples], "en"), good[1]]
    hypotheses = dict(decoder.decode(sources, 3, on_error=lambda key, error: errors.append((key, str(error)))))
    assert [key for key, _ in errors] == ["broken"]
    assert ("not finite" in errors[0][1]) == (kind != "integers")
    assert "32768" in errors[0][1]
    assert hypotheses.keys() == {0, 1}
    with pytest.raises(AudioError):
        dict(decoder.decode(sources, 3))
    recognizer = Recognizer(decoder)
    session = recognizer.open("en")
    with pytest.raises(AudioError):
        session.accept_samples(BROKEN[kind])
    assert _tokens(_run(recognizer, session, samples)) == hypotheses[0].tokens == hypotheses[1].tokens != []


@pytest.mark.parametrize("samples", [0, 1, 160, 399, 16000])
def test_short_audio_and_silence_have_one_final_result(model, samples):
    recognizer = Recognizer(_decoder(model, ModifiedBeamSearch), EndpointConfig())
    results = _run(recognizer, recognizer.open("en"), torch.zeros(samples))
    assert [result.is_final for result in results].count(True) == 1
    assert results[-1].end == samples / 16000


def test_clipped_audio_is_decoded(emformer):
    recognizer = Recognizer(_decoder(emformer))
    clipped = (_speech(1.0) * 100).clamp(-1, 1)
    assert _tokens(_run(recognizer, recognizer.open("en"), clipped)) != []


def _tensors(value):
    """Return all tensors that an object refers to, except those of modules."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    if hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        return [tensor for attribute in vars(value).values() for tensor in _tensors(attribute)]
    return []


def _num_bytes(session):
    """Return the memory of a session in bytes: tensors, and token lists."""
    return num_storage_bytes(_tensors(session)) + 8 * (len(session.previous_tokens) + len(session.carried_over))


def test_memory_of_a_session_is_bounded(emformer):
    recognizer = Recognizer(_decoder(emformer, ModifiedBeamSearch), EndpointConfig(rule3_min_utterance_length=0.8))
    session = recognizer.open("en")
    sizes, tokens = [], 0
    for _ in range(40):
        session.accept_samples(_speech(0.16))  # a chunk
        for result in _results(recognizer, session):
            if result.is_final:
                tokens += len(result.tokens)
                sizes.append(_num_bytes(session))
    assert tokens > 20
    assert len(sizes) > 5
    assert set(sizes[1:]) == {sizes[1]}


def test_unknown_language_is_refused(emformer):
    recognizer = Recognizer(_decoder(emformer))
    with pytest.raises(ValueError, match="'xx': expected one of en, fr, it"):
        recognizer.open("xx")
    with pytest.raises(ValueError, match="specify the language"):
        recognizer.open(None)
