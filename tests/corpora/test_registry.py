"""A new corpus needs one module and one registry entry: a toy corpus works in the whole recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_corpus
from lhotse import CutSet

from icefall_pathways.commands import get_corpus as get_corpus_command
from icefall_pathways.commands import prepare_manifests
from icefall_pathways.corpora import mini_speech
from icefall_pathways.corpora.description import CorpusDescription
from icefall_pathways.corpora.layout import SPLITS, describe_corpus, find_corpus, result_name
from icefall_pathways.corpora.mini import MiniCorpusConfig
from icefall_pathways.corpora.registry import CORPORA, get_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank, summarize_cuts
from icefall_pathways.data.sample_config import SampleConfig
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.data.tokenizer_texts import TokenizerTexts
from icefall_pathways.decoding.config import DecodeConfig
from icefall_pathways.decoding.decode_run import decode
from icefall_pathways.languages import TextOptions, codes_of, parse_languages
from icefall_pathways.recipe.prepare import prepare_jobs
from icefall_pathways.recipe.prepare_config import PrepareConfig


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(CORPORA, "toy", toy_corpus.SPEC)


@pytest.fixture
def prepared(tmp_path, registered):
    """Prepare the toy corpus via the registry and return the folder of its data."""
    get_corpus_command.run(get_corpus_command.Config("toy", tmp_path / "corpus", "en"))
    prepare_manifests.run(prepare_manifests.Config("toy", tmp_path / "corpus", tmp_path / "manifests", "en"))
    config = ComputeFbankConfig(tmp_path / "manifests", tmp_path / "fbank", "en", num_jobs=1)
    assert compute_fbank(config).kept == {("en", split): 3 for split in SPLITS}
    assert len(summarize_cuts(config).splitlines()) == 7  # a row per split, and four lines of the frame
    return tmp_path


def test_a_registered_corpus_yields_features_tokens_and_batches(prepared):
    cuts = CutSet.from_file(prepared / "fbank" / "toy-english_cuts_train.jsonl.gz")
    assert [cut.num_frames for cut in cuts] == [100, 150, 200]
    texts = list(TokenizerTexts(prepared / "fbank", parse_languages("en"), SampleConfig()).sample())
    assert texts == list(toy_corpus.TEXTS)
    tokenizer = Tokenizer(train_tokenizer(texts, 12, prepared / "lang"))
    unperturbed = {"shift_perturb": 0.0, "silence_perturb": 0.0, "join_perturb": 0.0}
    config = DataConfig(manifest_dir=prepared / "fbank", languages="en", num_workers=0, **unperturbed)
    data = SpeechDataModule(config, tokenizer)
    batch = next(data.train_batches(0, 1, seed=1))
    assert sorted(batch.texts) == sorted(toy_corpus.TEXTS) and batch.language == "en"
    assert batch.inputs.shape == (3, 200, 80) and bool(torch.isfinite(batch.inputs).all()) and batch.total_tokens > 0
    assert data.corpus_cuts.corpus == "toy" and data.loader("en", "dev").test_set == "toy-english-dev"


def test_results_are_named_after_the_corpus(prepared, experiment, exp_dir):
    decode(DecodeConfig(exp_dir=exp_dir, manifest_dir=prepared / "fbank", languages="en", split="test"))
    names = {path.name.split("-test-")[0] for path in (exp_dir / "greedy_search").iterdir()}
    assert names == {"recogs-toy-english", "errs-toy-english", "wer-summary-toy-english", "wer-summary-all-toy"}


def test_prepare_sh_runs_a_registered_corpus(tmp_path, registered):
    config = PrepareConfig(corpus="toy", languages="en", num_jobs=1)
    acquire, manifests, *_ = (job.steps[0] for job in prepare_jobs(config))
    words = "--corpus toy --corpus-dir download/toy --languages en --num-jobs 1"
    assert " ".join(acquire.command[-8:]) == words
    assert " --corpus toy " in " ".join(manifests.command)
    assert acquire.mark_text == manifests.mark_text == "toy download/toy train"
    existing = prepare_jobs(replace(config, corpus_dir=str(tmp_path)))[0].steps[0]
    assert existing.command == () and existing.message == f"The corpus is in {tmp_path}"


def test_case_and_punctuation_are_kept_on_demand(tmp_path, registered):
    options = {"languages": "en", "keep_case": True, "keep_punctuation": True}
    config = PrepareConfig(corpus="toy", data_dir=tmp_path, **options)
    manifests = prepare_jobs(config)[1].steps[0]
    assert " --keep-case 1 --keep-punctuation 1 " in " ".join(manifests.command)
    assert manifests.mark_text == "toy download/toy train keep_case keep_punctuation"
    toy_corpus.acquire(tmp_path / "corpus", parse_languages("en"), 1)
    prepare_manifests.run(prepare_manifests.Config("toy", tmp_path / "corpus", tmp_path / "manifests", **options))
    assert CorpusDescription.load(tmp_path / "manifests") == CorpusDescription("toy", TextOptions(True, True))


@pytest.mark.parametrize("corpus", ["mini", "mls"])
def test_plain_corpora_have_no_case_or_punctuation_to_keep(tmp_path, corpus):
    with pytest.raises(CorpusError, match=f"--corpus {corpus} have neither"):
        prepare_jobs(PrepareConfig(corpus=corpus, languages="en", keep_case=True))
    config = prepare_manifests.Config(corpus, tmp_path, tmp_path / "manifests", "en", keep_punctuation=True)
    with pytest.raises(CorpusError, match=f"--corpus {corpus} have neither"):
        prepare_manifests.run(config)


def test_a_corpus_that_cannot_be_downloaded_requires_a_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(CORPORA, "toy", replace(toy_corpus.SPEC, acquire_command=None))
    with pytest.raises(ValueError, match=r"--corpus-dir: none given; --corpus toy needs an existing folder"):
        prepare_jobs(PrepareConfig(corpus="toy", languages="en"))
    with pytest.raises(CorpusError, match=r"--corpus toy cannot be downloaded: obtain it"):
        get_corpus_command.run(get_corpus_command.Config("toy", tmp_path, "en"))


def test_a_language_that_the_corpus_does_not_offer_is_rejected(tmp_path, registered):
    config = prepare_manifests.Config("toy", tmp_path / "corpus", tmp_path / "manifests", "en fr nl")
    with pytest.raises(CorpusError, match=r"the corpus toy does not offer fr nl; expected some of en"):
        prepare_manifests.run(config)


@pytest.mark.parametrize("name", CORPORA)
def test_a_registered_corpus_has_the_functions_of_its_interface(name):
    spec = get_corpus(name)
    assert spec is CORPORA[name] and spec.name == name
    assert callable(spec.load().prepare_manifests)
    assert spec.acquire_command is None or callable(spec.load().acquire)
    if spec.languages is None:
        assert callable(spec.load().discover_languages)
    else:
        assert spec.languages == tuple(codes_of(spec.languages)) and set(spec.default_languages) <= set(spec.languages)


def test_content_options_of_the_embedded_corpus_and_mls():
    assert "hours" in CORPORA["mini"].content_options and CORPORA["mls"].content_options == ("subset",)


def test_the_embedded_corpus_offers_the_languages_of_its_voices():
    assert set(CORPORA["mini"].languages) == set(mini_speech.VOICES)


@pytest.mark.parametrize("corpus", ["mini", "mls"])
def test_a_language_without_data_is_not_offered(corpus):
    message = f"the corpus {corpus} does not offer sv; expected some of {' '.join(CORPORA[corpus].languages)}"
    with pytest.raises(CorpusError, match=message):
        prepare_jobs(PrepareConfig(corpus=corpus, languages="en sv"))
    with pytest.raises(CorpusError, match="the corpus mini does not offer sv"):
        MiniCorpusConfig(languages="sv").check()


def test_an_unknown_corpus_is_rejected_with_the_known_names():
    with pytest.raises(CorpusError, match=rf"^--corpus x: expected one of {', '.join(CORPORA)}$"):
        get_corpus("x")


def test_results_of_own_corpora_are_named_by_their_folders(tmp_path):
    (tmp_path / "my clips").mkdir()
    assert CORPORA["folder"].label(tmp_path / "my clips") == "my_clips"
    assert CORPORA["manifests"].label(Path("/data/cv-17 fleurs/")) == "cv_17_fleurs"
    assert CORPORA["mls"].label(tmp_path / "my clips") == ""
    describe_corpus(tmp_path, "folder", TextOptions(), "my_clips")
    describe_corpus(tmp_path, "folder", TextOptions(), "moved")  # continued: results keep their names
    assert (result_name(tmp_path), find_corpus(tmp_path, "cuts")) == ("my_clips", "folder")
