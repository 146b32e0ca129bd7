"""Which language is spoken: evidence, the choice, and how it is calibrated."""

import json
import shutil

import pytest
import torch
from all_layer_types import random_masks
from stream_models import make_model
from tiny_experiment import halves

from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.language_id.calibration import (
    COMBINED,
    CalibrationConfig,
    LanguageIdExample,
    accuracy,
    calibrate,
    fit,
    fit_all,
    loss_of,
)
from icefall_pathways.decoding.language_id.model import (
    FEATURES,
    LanguageIdentifier,
    LanguageIdFeatures,
    LanguageIdModel,
    gather,
    unigram_log_probs,
    with_scoring,
)
from icefall_pathways.decoding.streaming import Recognizer, Source, StreamingDecoder
from icefall_pathways.experiment import layout
from icefall_pathways.pathways.activation import FoldedPathways, activate
from icefall_pathways.searches import Hypothesis, ModifiedBeamSearch

LANGUAGES = ("en", "fr", "it")
UNIGRAMS = {language: unigram_log_probs([[3, place, place]], 20) for place, language in enumerate(LANGUAGES)}


def _speech(seconds):
    samples = torch.randn(int(16000 * seconds)) * 0.1
    return samples * (torch.arange(len(samples)) // 1000 % 3 + 0.01)


@pytest.fixture
def decoder():
    model = make_model("emformer-ctc")
    masks = random_masks(model, LANGUAGES, density=0.7)
    searches = {language: ModifiedBeamSearch(model, 4) for language in LANGUAGES}
    return StreamingDecoder(model, searches, FbankConfig(), FoldedPathways(model, masks))


def test_evidence_is_that_of_the_whole_utterance(decoder):
    """By the CTC head and by the search, through each pathway, whatever else is in the batch."""
    listening, samples = with_scoring(decoder), _speech(0.9)
    recognizer = Recognizer(listening, select_language=lambda candidates, sound, ended: None)
    session, other = recognizer.open(None), recognizer.open(None)
    for part in samples.split(1000):
        session.accept_samples(part)
        other.accept_samples(_speech(0.1))
        recognizer.advance([session, other])
    session.finish()
    while recognizer.is_ready(session) and not listening.is_done(session.candidates[0]):
        recognizer.advance([session])
    _, found = gather(listening, [other.candidates, session.candidates], UNIGRAMS)
    written = [token for hypothesis in found.found for token in hypothesis.tokens]
    features = torch.as_tensor(FbankConfig().extractor().extract(samples.numpy(), 16000))[None]
    for place, language in enumerate(LANGUAGES):
        with torch.no_grad(), activate(decoder.model, decoder.pathways.masks, language):
            frames, lens = decoder.model.encode(features, torch.tensor([features.size(1)]))
            search = decoder.searches[language]
            hypothesis = search.results(search.advance(search.init(1), frames, lens))[0]
            best, tokens = decoder.model.ctc_output(frames)[0].log_softmax(dim=-1).max(dim=-1)
        assert found.found[place].tokens == hypothesis.tokens
        expected = [
            hypothesis.log_prob / frames.size(1),
            hypothesis.log_prob / len(hypothesis.tokens),
            best.mean(),
            best[tokens != 0].mean(),
            sum(UNIGRAMS[language][token] for token in written) / len(written),
        ]
        assert found.features[place].tolist() == pytest.approx([float(x) for x in expected], abs=1e-4)
    first = min(hypothesis.timestamps[0] for hypothesis in found.found)
    assert found.heard == pytest.approx((frames.size(1) - first) * 0.04)


def test_unigrams():
    counted = torch.tensor(unigram_log_probs([[1, 1, 3], [], [1]], 4)).exp()
    torch.testing.assert_close(counted, torch.tensor([1.0, 4.0, 1.0, 2.0]) / 8)


def test_the_chosen_pathway_has_heard_everything(decoder):
    samples = _speech(1.2)
    alone = dict(decoder.decode([Source(language, [samples], language) for language in LANGUAGES], 3))
    listening = with_scoring(decoder)
    for language in LANGUAGES:
        offsets = {other: 100.0 * (other == language) for other in LANGUAGES}
        chooser = LanguageIdentifier(LanguageIdModel({"ctc_per_frame": 1.0}, offsets, UNIGRAMS, seconds=0.5), listening)
        results = [
            result
            for _, result in Recognizer(listening, select_language=chooser).recognize(
                [Source("speech", samples.split(800), None)], 1, on_error=pytest.fail
            )
        ]
        assert {result.language for result in results} == {language}
        assert results[0].end >= 0.5
        assert results[-1].tokens == alone[language].tokens


def test_one_listens_until_enough_was_said_or_the_audio_ends(decoder, monkeypatch):
    chooser = LanguageIdentifier(
        LanguageIdModel({"search_per_frame": 1.0}, dict.fromkeys(LANGUAGES, 0.0), UNIGRAMS, 2.0), decoder
    )
    candidates = [decoder.open(language) for language in LANGUAGES]
    features = torch.zeros(3, len(FEATURES))
    features[:, 0] = torch.tensor([-3.0, -1.0, -2.0])
    for heard, sound, ended, expected in [
        (1.9, 9.0, False, None),
        (9.0, 1.9, False, None),
        (2.0, 2.0, False, 1),
        (0.0, 0.0, True, 1),
    ]:
        evidence = LanguageIdFeatures(features, heard, [Hypothesis([], [], 0.0)] * 3)
        monkeypatch.setattr("icefall_pathways.decoding.language_id.model.gather", lambda *_, e=evidence: [e])
        assert chooser(candidates, sound, ended) is (None if expected is None else candidates[expected])


def _heard(number, informative, noise=1.0):
    """Utterances of which one feature tells the language, better the longer they are heard; one language sounds surer
    than it is."""
    heard = []
    for language in range(3):
        for _ in range(number):
            one = LanguageIdExample(language, "")
            for seconds in (0.5, 1.0, 2.0):
                features = torch.randn(3, len(FEATURES)) * noise
                features[language, informative] += 1.5 * seconds
                features[0, informative] += 4.0
                one.evidence.append(LanguageIdFeatures(features, seconds, []))
            heard.append(one)
    return heard


def test_calibration_finds_what_tells_languages_apart():
    dev, test = _heard(100, informative=2), _heard(100, informative=2)
    seconds = [0.5, 2.0]
    models = fit_all(dev, LANGUAGES, seconds, has_ctc=True)
    losses = {name: loss_of(model, dev, LANGUAGES, seconds) for name, model in models.items()}
    assert sorted(losses, key=losses.get)[:2] in ([COMBINED, "ctc_per_frame"], ["ctc_per_frame", COMBINED])
    assert losses["search_per_frame"] == pytest.approx(1.0986, abs=0.02)
    model = models["ctc_per_frame"]
    assert model.offsets["en"] < min(model.offsets["fr"], model.offsets["it"]) - 2
    raw = LanguageIdModel({"ctc_per_frame": 1.0}, dict.fromkeys(LANGUAGES, 0.0), UNIGRAMS)
    assert accuracy(raw, test, LANGUAGES, 2.0) < 65
    assert 45 < accuracy(model, test, LANGUAGES, 0.5) < accuracy(model, test, LANGUAGES, 2.0)
    assert accuracy(model, test, LANGUAGES, 2.0) > 90
    assert list(fit_all(dev, LANGUAGES, seconds, has_ctc=False)) == [
        "search_per_frame",
        "search_per_token",
        "text_per_token",
        COMBINED,
    ]
    # What cannot be wrong does not make the weights endless.
    assert abs(fit(_heard(30, 1, noise=0.01), LANGUAGES, [2.0], ["search_per_token"]).weights["search_per_token"]) < 20


def test_calibrate(exp_dir, experiment, tmp_path):
    for path in experiment.glob("*"):
        if path.suffix in (".gz", ".model") or path.name.endswith("-feats"):
            (tmp_path / path.name).symlink_to(path)
            if "cuts_test" in path.name:
                for split in ("train", "dev"):
                    shutil.copy(path, tmp_path / path.name.replace("cuts_test", f"cuts_{split}"))
    options = {"exp_dir": exp_dir, "manifest_dir": tmp_path, "seconds": "0.2 0.4", "num_decode_streams": 2}
    with pytest.raises(ValueError, match="no pathway for each language"):
        calibrate(CalibrationConfig(**options))
    halves(exp_dir)
    report = calibrate(CalibrationConfig(**options))
    model = LanguageIdModel.load(exp_dir / layout.LANGUAGE_ID_FILE)
    assert set(model.offsets) == {"en", "nl"}
    assert model.seconds == 2.0
    figures = json.loads(next((exp_dir / "streaming" / "greedy_search").glob("language-choice-*.json")).read_text())
    assert set(figures["accuracy"]) == {"search_per_frame", "search_per_token", "text_per_token", COMBINED}
    assert all(len(row) == 3 and all(0 <= x <= 100 for x in row) for row in figures["accuracy"].values())
    assert [len(row) for row in figures["wer"].values()] == [4, 4]
    assert figures["chosen"] in report
    with pytest.raises(ValueError, match="no CTC head"):
        calibrate(CalibrationConfig(**options, features="ctc_per_token"))
    with pytest.raises(ValueError, match="--seconds"):
        CalibrationConfig(seconds="long")
