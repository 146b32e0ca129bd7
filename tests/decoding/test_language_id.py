"""Spoken language identification: features, selection of the language, and calibration."""

import json
import shutil

import pytest
import torch
from all_layer_types import random_masks
from stream_models import make_model
from tiny_experiment import write_complementary_masks

from icefall_pathways import cli
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.decoding.language_id.calibration import (
    COMBINED,
    CalibrationConfig,
    LanguageIdExample,
    accuracy,
    calibrate,
    cross_entropy,
    fit,
    fit_all,
)
from icefall_pathways.decoding.language_id.model import (
    FEATURES,
    LanguageIdentifier,
    LanguageIdFeatures,
    LanguageIdModel,
    extract_features,
    load_language_identifier,
    unigram_log_probs,
    with_scoring,
)
from icefall_pathways.decoding.streaming import FRAME_SECONDS, Recognizer, Source, StreamingDecoder
from icefall_pathways.experiment import layout
from icefall_pathways.pathways.activation import FoldedPathways, activate
from icefall_pathways.searches import Hypothesis, ModifiedBeamSearch

LANGUAGES = ("en", "fr", "it")
UNIGRAMS = {language: unigram_log_probs([[3, index, index]], 20) for index, language in enumerate(LANGUAGES)}


def _speech(seconds):
    samples = torch.randn(int(16000 * seconds)) * 0.1
    return samples * (torch.arange(len(samples)) // 1000 % 3 + 0.01)


@pytest.fixture
def decoder():
    model = make_model("emformer-ctc")
    masks = random_masks(model, LANGUAGES, density=0.7)
    searches = {language: ModifiedBeamSearch(model, 4) for language in LANGUAGES}
    return StreamingDecoder(model, searches, FbankConfig(), FoldedPathways(model, masks))


def test_streaming_features_equal_offline_features(decoder):
    """For each pathway, and independently of other sessions in the batch."""
    scoring, samples = with_scoring(decoder), _speech(0.9)
    recognizer = Recognizer(scoring, select_language=lambda candidates, audio_seconds, ended: None)
    session, other = recognizer.open(None), recognizer.open(None)
    for block in samples.split(1000):
        session.accept_samples(block)
        other.accept_samples(_speech(0.1))
        recognizer.advance([session, other])
    session.finish()
    while recognizer.is_ready(session) and not scoring.is_done(session.candidates[0]):
        recognizer.advance([session])
    _, features = extract_features(scoring, [other.candidates, session.candidates], UNIGRAMS)
    decoded = [token for hypothesis in features.hypotheses for token in hypothesis.tokens]
    x = torch.as_tensor(FbankConfig().extractor().extract(samples.numpy(), 16000))[None]
    for index, language in enumerate(LANGUAGES):
        with torch.no_grad(), activate(decoder.model, decoder.pathways.masks, language):
            frames, lens = decoder.model.encode(x, torch.tensor([x.size(1)]))
            search = decoder.searches[language]
            hypothesis = search.results(search.advance(search.init(1), frames, lens))[0]
            best, tokens = decoder.model.ctc_output(frames)[0].log_softmax(dim=-1).max(dim=-1)
        assert features.hypotheses[index].tokens == hypothesis.tokens
        expected = [
            hypothesis.log_prob / frames.size(1),
            hypothesis.log_prob / len(hypothesis.tokens),
            best.mean(),
            best[tokens != 0].mean(),
            sum(UNIGRAMS[language][token] for token in decoded) / len(decoded),
        ]
        assert features.values[index].tolist() == pytest.approx([float(value) for value in expected], abs=1e-4)
    first = min(hypothesis.timestamps[0] for hypothesis in features.hypotheses)
    assert features.speech_seconds == pytest.approx((frames.size(1) - first) * FRAME_SECONDS)


def test_unigrams_have_add_one_smoothing():
    probs = torch.tensor(unigram_log_probs([[1, 1, 3], [], [1]], 4)).exp()
    torch.testing.assert_close(probs, torch.tensor([1.0, 4.0, 1.0, 2.0]) / 8)


def test_selected_pathway_has_decoded_all_audio(decoder):
    samples = _speech(1.2)
    expected = dict(decoder.decode([Source(language, [samples], language) for language in LANGUAGES], 3))
    scoring = with_scoring(decoder)
    for language in LANGUAGES:
        offsets = {other: 100.0 * (other == language) for other in LANGUAGES}
        model = LanguageIdModel({"ctc_per_frame": 1.0}, offsets, UNIGRAMS, seconds=0.5)
        recognizer = Recognizer(scoring, select_language=LanguageIdentifier(model, scoring))
        source = Source("speech", samples.split(800), None)
        results = [result for _, result in recognizer.recognize([source], 1, on_error=pytest.fail)]
        assert {result.language for result in results} == {language}
        assert results[0].end >= 0.5
        assert results[-1].tokens == expected[language].tokens


@pytest.mark.parametrize(
    ("speech_seconds", "audio_seconds", "ended", "expected"),
    [(1.9, 9.0, False, None), (9.0, 1.9, False, None), (2.0, 2.0, False, 1), (0.0, 0.0, True, 1)],
)
def test_language_is_selected_after_enough_speech_or_at_the_end(speech_seconds, audio_seconds, ended, expected):
    model = LanguageIdModel({"search_per_frame": 1.0}, dict.fromkeys(LANGUAGES, 0.0), UNIGRAMS, seconds=2.0)
    values = torch.zeros(3, len(FEATURES))
    values[:, 0] = torch.tensor([-3.0, -1.0, -2.0])
    features = LanguageIdFeatures(values, speech_seconds, [Hypothesis([], [], 0.0)] * 3)
    assert model.select(features, LANGUAGES, audio_seconds, ended) == expected


def test_uncalibrated_language_is_refused(decoder):
    model = LanguageIdModel({}, {"en": 0.0, "fr": 0.0}, UNIGRAMS)
    with pytest.raises(ValueError, match=r"not calibrated for it: run calibrate_language_id\.py"):
        LanguageIdentifier(model, decoder)


def _examples(count, informative, noise=1.0):
    """Return examples in which one feature separates the languages, better after more speech.

    The feature has a bias towards the first language.
    """
    examples = []
    for language in range(3):
        for _ in range(count):
            example = LanguageIdExample(language, "")
            for seconds in (0.5, 1.0, 2.0):
                values = torch.randn(3, len(FEATURES)) * noise
                values[language, informative] += 1.5 * seconds
                values[0, informative] += 4.0
                example.features.append(LanguageIdFeatures(values, seconds, []))
            examples.append(example)
    return examples


def test_calibration_selects_the_informative_feature_and_corrects_its_bias():
    dev, test = _examples(100, informative=2), _examples(100, informative=2)
    seconds = [0.5, 2.0]
    models = fit_all(dev, LANGUAGES, seconds, has_ctc=True)
    losses = {name: cross_entropy(model, dev, LANGUAGES, seconds) for name, model in models.items()}
    assert sorted(losses, key=losses.get)[:2] in ([COMBINED, "ctc_per_frame"], ["ctc_per_frame", COMBINED])
    assert losses["search_per_frame"] == pytest.approx(1.0986, abs=0.02)
    model = models["ctc_per_frame"]
    assert model.offsets["en"] < min(model.offsets["fr"], model.offsets["it"]) - 2
    uncalibrated = LanguageIdModel({"ctc_per_frame": 1.0}, dict.fromkeys(LANGUAGES, 0.0), UNIGRAMS)
    assert accuracy(uncalibrated, test, LANGUAGES, 2.0) < 65
    assert 45 < accuracy(model, test, LANGUAGES, 0.5) < accuracy(model, test, LANGUAGES, 2.0)
    assert accuracy(model, test, LANGUAGES, 2.0) > 90


def test_models_without_ctc_head_have_no_ctc_features():
    models = fit_all(_examples(5, informative=0), LANGUAGES, [2.0], has_ctc=False)
    assert list(models) == ["search_per_frame", "search_per_token", "text_per_token", COMBINED]


def test_weights_stay_finite_for_separable_features():
    model = fit(_examples(30, informative=1, noise=0.01), LANGUAGES, [2.0], ["search_per_token"])
    assert abs(model.weights["search_per_token"]) < 20


@pytest.fixture
def all_splits(experiment, tmp_path):
    """Return a folder with the data of the experiment, whose train and dev splits are copies of its test split."""
    for path in experiment.glob("*"):
        if path.suffix in (".gz", ".model") or path.name.endswith("-feats"):
            (tmp_path / path.name).symlink_to(path)
            if "cuts_test" in path.name:
                for split in ("train", "dev"):
                    shutil.copy(path, tmp_path / path.name.replace("cuts_test", f"cuts_{split}"))
    return tmp_path


def test_calibration_writes_model_and_report(exp_dir, all_splits, capsys):
    options = {"exp_dir": exp_dir, "manifest_dir": all_splits, "seconds": "0.2 0.4", "num_decode_streams": 2}
    with pytest.raises(ValueError, match="no separate pathway per language"):
        calibrate(CalibrationConfig(**options))
    write_complementary_masks(exp_dir)
    report = calibrate(CalibrationConfig(**options))
    path = exp_dir / layout.LANGUAGE_ID_FILE
    assert f"wrote {path}: transcribe.py --lang auto can use it now\n" in capsys.readouterr().out
    model = LanguageIdModel.load(exp_dir / layout.LANGUAGE_ID_FILE)
    assert set(model.offsets) == {"en", "nl"}
    assert model.seconds == 2.0
    figures = json.loads(next((exp_dir / "streaming" / "greedy_search").glob("language-id-*.json")).read_text())
    assert set(figures["accuracy"]) == {"search_per_frame", "search_per_token", "text_per_token", COMBINED}
    assert all(len(row) == 3 and all(0 <= x <= 100 for x in row) for row in figures["accuracy"].values())
    assert [len(row) for row in figures["wer"].values()] == [4, 4]
    assert figures["chosen"] in report
    with pytest.raises(ValueError, match="no CTC head"):
        calibrate(CalibrationConfig(**options, features="ctc_per_token"))


def test_invalid_options_are_refused():
    with pytest.raises(ValueError, match="--seconds is 'long'"):
        CalibrationConfig(seconds="long")
    with pytest.raises(ValueError, match=r"--min-speech-seconds is 0\.0"):
        CalibrationConfig(min_speech_seconds=0.0)


def test_previous_option_name_still_works():
    config = cli.read_config("calibrate-language-id", ["--listen-seconds", "1.5"])
    assert config == cli.read_config("calibrate-language-id", ["--min-speech-seconds", "1.5"])
    assert config.min_speech_seconds == 1.5


def test_previous_file_name_is_still_read(decoder, tmp_path):
    with pytest.raises(
        ValueError, match=r"language_id\.json not found: calibrate .*calibrate_language_id\.py --exp-dir"
    ):
        load_language_identifier(tmp_path, decoder)
    offsets = dict.fromkeys(LANGUAGES, 0.0)
    previous = LanguageIdModel({"ctc_per_frame": 1.0}, offsets, UNIGRAMS, seconds=1.0)
    previous.save(tmp_path / "language_choice.json")
    assert load_language_identifier(tmp_path, decoder).model == previous
    current = LanguageIdModel({"ctc_per_frame": 2.0}, offsets, UNIGRAMS)
    current.save(tmp_path / layout.LANGUAGE_ID_FILE)
    assert load_language_identifier(tmp_path, decoder).model == current
