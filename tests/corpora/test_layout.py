"""File names of prepared data, and the name of the corpus that is read from them."""

from pathlib import Path

import pytest
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from icefall_pathways.corpora.description import DESCRIPTION_FILE, CorpusDescription
from icefall_pathways.corpora.layout import SplitFiles, describe_corpus, find_corpus, write_manifests
from icefall_pathways.corpora.validation import CorpusError, CorpusReport
from icefall_pathways.languages import TextOptions, get_language


def files(folder, corpus="mls", language="fr", split="test"):
    return SplitFiles(folder, corpus, get_language(language), split)


def utterance(name, text, rate=16000, language="fr"):
    recording = Recording(name, [], rate, rate, 1.0, [0])
    return recording, SupervisionSegment(name, name, 0.0, 1.0, text=text, language=language)


def test_only_utterances_in_the_alphabet_of_the_language_are_written_and_kept(tmp_path):
    texts = [("a", ""), ("b", " e\u0301te\u0301"), ("c", "42 ü"), ("d", " "), ("e", "où")]

    def read(part, report):
        report.drop("fr", "test", "no subtitles", f"{part[0][0]}: the file lacks them")
        report.add_notes("fr", "test", ["read by its author"])
        yield from (utterance(name, text) for name, text in part[1:])

    report = write_manifests(files(tmp_path), texts, read)
    assert report.kept == {("fr", "test"): 2}
    assert report.dropped == {("fr", "test", reason): 1 for reason in ("no subtitles", "foreign characters", "no text")}
    assert [r.id for r in RecordingSet.from_file(files(tmp_path).recordings)] == ["b", "e"]
    assert [s.text for s in SupervisionSet.from_file(files(tmp_path).supervisions)] == ["été", "où"]
    assert write_manifests(files(tmp_path), texts, read) == report == CorpusReport.load(files(tmp_path).report)
    header = next(line for line in report.table().splitlines() if "kept" in line)
    columns = ["no text", "foreign characters", "no subtitles", "read by its author"]
    assert sorted(columns, key=header.index) == columns
    assert "c has '24' in '42 ü'" in report.table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 8000}, r"mls french test: recording a has a sampling rate of 8000 Hz: expected 16000 Hz; .*resample"),
        ({"language": "en"}, r"recording a has a supervision with the language 'en': expected 'fr'"),
    ],
)
def test_a_wrong_sampling_rate_or_language_is_an_error_and_leaves_no_manifest(tmp_path, options, message):
    with pytest.raises(CorpusError, match=message):
        write_manifests(files(tmp_path), ["a"], lambda names, _report: [utterance(names[0], "été", **options)])
    assert not list(tmp_path.glob("*.jsonl.gz"))


def test_manifest_names_of_mls_equal_those_of_lhotse_prepare_mls():
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


def test_the_description_of_a_folder_names_its_corpus(tmp_path):
    files(tmp_path, "mls").cuts.touch()
    describe_corpus(tmp_path / "new", "mini", None)
    describe_corpus(tmp_path / "new", "mini", None)
    files(tmp_path / "new", "mini").cuts.touch()
    assert find_corpus(tmp_path / "new", "recordings") == find_corpus(tmp_path / "new", "cuts") == "mini"
    assert find_corpus(tmp_path, "cuts") == "mls"


@pytest.mark.parametrize(("name", "text"), [("toy", TextOptions()), ("cv", TextOptions(keep_case=True)), ("cv", None)])
def test_a_folder_holds_one_corpus_with_one_normalization(tmp_path, name, text):
    describe_corpus(tmp_path, "cv", TextOptions())
    with pytest.raises(CorpusError, match=r"holds the corpus cv \(keep_case 0, .*now it would be.*another --data-dir"):
        describe_corpus(tmp_path, name, text)
    assert CorpusDescription.load(tmp_path) == CorpusDescription("cv", TextOptions())


def test_a_folder_of_an_earlier_version_gets_no_description(tmp_path):
    files(tmp_path, "mls").recordings.touch()
    describe_corpus(tmp_path, "mini", None)
    assert not (tmp_path / DESCRIPTION_FILE).exists() and find_corpus(tmp_path, "recordings") == "mls"
    with pytest.raises(CorpusError, match="prepared by an earlier version, without case and punctuation"):
        describe_corpus(tmp_path, "mini", TextOptions(keep_case=True))


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": "a", "text": {"keep": 1}}', "{"])
def test_a_damaged_description_is_an_error(tmp_path, content):
    (tmp_path / DESCRIPTION_FILE).write_text(content)
    with pytest.raises(CorpusError, match=r"corpus.json is damaged .*restore it"):
        find_corpus(tmp_path, "cuts")


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (None, ["été"]),
        (TextOptions(), ["l'été fini", "été"]),
        (TextOptions(keep_case=True), ["L'Été fini", "été"]),
        (TextOptions(keep_punctuation=True), ["l'été, fini!", "été"]),
        (TextOptions(keep_case=True, keep_punctuation=True), ["L'Été, fini!", "été"]),
    ],
)
def test_transcripts_are_normalized_with_the_options_of_the_folder(tmp_path, options, texts):
    describe_corpus(tmp_path, "mls", options)
    given = {"a": "L’Été, fini !", "b": "20 ans", "c": "été"}
    report = write_manifests(files(tmp_path), list(given), lambda names, _: (utterance(n, given[n]) for n in names))
    assert [s.text for s in SupervisionSet.from_file(files(tmp_path).supervisions)] == texts
    assert report.dropped == {("fr", "test", "foreign characters"): 3 - len(texts)}


def test_an_unknown_alphabet_is_derived_from_the_training_text_and_reported(tmp_path):
    describe_corpus(tmp_path, "cv", TextOptions())
    report = CorpusReport()
    for split, texts in (("train", ["Ŋa wa", "Ŋ'a 1"]), ("dev", ["ŋo"])):
        read = lambda part, _: (utterance(text, text, language="xyz") for text in part)  # noqa: E731
        report.add(write_manifests(files(tmp_path, "cv", "xyz", split), texts, read))
    assert report.kept == {("xyz", "train"): 1, ("xyz", "dev"): 1}
    assert report.dropped == {("xyz", "train", "foreign characters"): 1}
    assert CorpusReport.from_json(report.to_json()) == report
    line = "xyz has no built-in alphabet; 3 characters in its training transcripts: awŋ; only in others: o"
    assert line in report.table()
    assert "characters" not in CorpusReport().to_json()
