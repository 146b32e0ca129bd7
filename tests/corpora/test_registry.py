"""A new corpus is one module and one registry line: a toy corpus passes through the whole recipe."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy_corpus
from lhotse import CutSet

from icefall_pathways.commands import prepare_manifests
from icefall_pathways.corpora.layout import SPLITS
from icefall_pathways.corpora.registry import CORPORA, Acquisition, get_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.fbank import ComputeFbankConfig, compute_fbank, summarize_cuts, transcripts
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.config import DecodeConfig
from icefall_pathways.decoding.decode_run import decode
from icefall_pathways.languages import parse_languages


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The folder of the toy corpus with its manifests and features, made by way of the registry."""
    monkeypatch.setitem(CORPORA, "toy", toy_corpus.SPEC)
    toy_corpus.make_toy_corpus(tmp_path / "corpus")
    prepare_manifests.run(prepare_manifests.Config("toy", tmp_path / "corpus", tmp_path / "manifests", "en"))
    config = ComputeFbankConfig(tmp_path / "manifests", tmp_path / "fbank", "en", num_jobs=1)
    assert compute_fbank(config).kept == {("en", split): 3 for split in SPLITS}
    assert len(summarize_cuts(config).splitlines()) == 7  # a row per split, and four lines of the frame
    return tmp_path


def test_a_registered_corpus_yields_features_tokens_and_batches(prepared):
    cuts = CutSet.from_file(prepared / "fbank" / "toy-english_cuts_train.jsonl.gz")
    assert [cut.num_frames for cut in cuts] == [100, 150, 200]
    texts = list(transcripts(prepared / "fbank", parse_languages("en"), "train"))
    assert texts == list(toy_corpus.TEXTS)
    tokenizer = Tokenizer(train_tokenizer(texts, 12, prepared / "lang"))
    data = SpeechDataModule(DataConfig(manifest_dir=prepared / "fbank", languages="en", num_workers=0), tokenizer)
    batch = next(data.train_batches(0, 1, seed=1))
    assert sorted(batch.texts) == sorted(toy_corpus.TEXTS) and batch.language == "en"
    assert batch.inputs.shape == (3, 200, 80) and bool(torch.isfinite(batch.inputs).all()) and batch.total_tokens > 0
    assert data.corpus == "toy" and data.loader("en", "dev").test_set == "toy-english-dev"


def test_results_are_named_after_the_corpus(prepared, experiment, exp_dir):
    decode(DecodeConfig(exp_dir=exp_dir, manifest_dir=prepared / "fbank", languages="en", split="test"))
    names = {path.name.split("-test-")[0] for path in (exp_dir / "greedy_search").iterdir()}
    assert names == {"recogs-toy-english", "errs-toy-english", "wer-summary-toy-english", "wer-summary-all-toy"}


def test_corpora_of_the_recipe_are_registered():
    assert list(CORPORA) == ["mini", "mls"]
    assert all(get_corpus(name).name == name for name in CORPORA)
    assert "hours" in CORPORA["mini"].content_options and CORPORA["mls"].content_options == ("subset",)


def test_an_unknown_corpus_is_rejected_with_the_known_names():
    with pytest.raises(CorpusError, match=r"^--corpus x: expected mini or mls$"):
        get_corpus("x")


def test_acquisition_passes_only_the_options_of_its_corpus():
    received = []
    acquire = Acquisition(_Options, received.append)
    acquire({"corpus_dir": Path("c"), "languages": "fr", "audio_format": "opus"})
    assert received == [_Options(Path("c"), "fr", seed=1)]


@dataclass
class _Options:
    corpus_dir: Path
    languages: str
    seed: int = 1
