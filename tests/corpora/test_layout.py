"""File names of prepared data, and the name of the corpus that is read from them."""

from pathlib import Path

import pytest

from icefall_pathways.corpora.layout import SplitFiles, find_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import get_language


def files(folder, corpus="mls", language="fr", split="test"):
    return SplitFiles(folder, corpus, get_language(language), split)


def test_file_names_of_mls_are_those_of_lhotse_prepare_mls():
    french = files(Path("data"))
    assert french.recordings == Path("data/mls-french_recordings_test.jsonl.gz")
    assert french.supervisions == Path("data/mls-french_supervisions_test.jsonl.gz")
    assert french.cuts == Path("data/mls-french_cuts_test.jsonl.gz")
    assert french.features == Path("data/mls-french_feats_test")
    assert french.report == Path("data/mls-french_report_test.json")
    assert french.test_set == "mls-french-test"


@pytest.mark.parametrize("corpus", ["mls", "common-voice", "cv_17"])
def test_the_corpus_name_is_read_from_manifest_names(tmp_path, corpus):
    for path in (files(tmp_path, corpus).cuts, files(tmp_path, corpus, "en", "train").cuts):
        path.touch()
    files(tmp_path, "other").recordings.touch()
    (tmp_path / "musan_cuts.jsonl.gz").touch()
    (tmp_path / "musan_cuts_noise.jsonl.gz").touch()
    assert find_corpus(tmp_path, "cuts") == corpus


def test_an_empty_or_missing_folder_gives_a_pattern(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        corpus = find_corpus(folder, "cuts")
        assert files(folder, corpus).cuts.name == "*-french_cuts_test.jsonl.gz"


def test_several_corpora_in_a_folder_are_rejected(tmp_path):
    files(tmp_path, "mls").cuts.touch()
    files(tmp_path, "toy", "en").cuts.touch()
    with pytest.raises(CorpusError, match=r"holds cuts of several corpora \(mls, toy\): expected one"):
        find_corpus(tmp_path, "cuts")
