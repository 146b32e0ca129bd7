"""A folder of clips per language: transcripts, speakers, splits, and the report of what is dropped."""

import os
from pathlib import Path

import pytest
from lhotse import RecordingSet, SupervisionSet
from public_layouts import make_folder, sentence, write_clip

from icefall_pathways.corpora import folder
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, describe_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import TextOptions, get_language, parse_languages


def prepare(corpus, output, languages="fr"):
    describe_corpus(output, "folder", TextOptions())
    return folder.prepare_manifests(corpus, output, parse_languages(languages), "train")


def supervisions(output, split, language="fr"):
    return list(SupervisionSet.from_file(SplitFiles(output, "folder", get_language(language), split).supervisions))


def write_text(path, text):
    write_clip(path).with_suffix(".txt").write_text(text, encoding="utf-8")


def test_clips_of_all_formats_are_divided_by_sentence(tmp_path):
    corpus = make_folder(tmp_path / "corpus", {"fr": "fr", "German": "de"}, num_clips=20)
    assert folder.discover_languages(corpus) == ["de", "fr"]
    report = prepare(corpus, tmp_path, "fr de")
    assert [report.kept["fr", split] for split in SPLITS] == [16, 2, 2] and not report.dropped
    assert report.notes["de", "dev", "held out by sentence"] == 2
    texts = [{supervision.text for supervision in supervisions(tmp_path, split)} for split in SPLITS]
    assert set.union(*texts) == {sentence("fr", i) for i in range(20)} and sum(map(len, texts)) == 20
    files = SplitFiles(tmp_path, "folder", get_language("fr"), "train")
    assert {recording.sampling_rate for recording in RecordingSet.from_file(files.recordings)} == {16000}
    assert all(supervision.id.startswith("fr-clip_") for supervision in supervisions(tmp_path, "train"))


def test_names_that_are_not_utf8(tmp_path):
    corpus = make_folder(tmp_path / "corpus", {"fr": "fr"}, num_clips=12)
    for name in ("clip 0.wav", "clip 0.txt", "clip 1.mp3"):
        path = corpus / "fr" / name
        path.rename(os.fsdecode(bytes(path.parent) + b"/caf\xe9" + path.name.encode()[5:]))
    report = prepare(corpus, tmp_path)
    assert report.dropped.pop(("fr", "train", "no transcript")) == 1
    assert r"caf\udce91.mp3" in report.table().encode().decode()
    # libsndfile may not find the other one.
    assert sum(report.kept.values()) == 11 - report.dropped.pop(("fr", "train", "unreadable audio"), 0) >= 10
    assert not report.dropped
    files = SplitFiles(tmp_path, "folder", get_language("fr"), "train")
    sources = [recording.sources[0].source for recording in RecordingSet.from_file(files.recordings)]
    assert all(Path(source).is_file() for source in sources)


def test_subfolders_are_speakers_and_are_divided_as_a_whole(tmp_path):
    for i in range(40):
        write_text(tmp_path / "corpus" / "french" / f"speaker{i % 20}" / f"{i}.wav", sentence("fr", i))
    report = prepare(tmp_path / "corpus", tmp_path)
    speakers = [{supervision.speaker for supervision in supervisions(tmp_path, split)} for split in SPLITS]
    assert sum(map(len, speakers)) == 20 and speakers[1] and speakers[2]
    assert report.notes["fr", "test", "held out by speaker"] == report.kept["fr", "test"] == 4


def test_linked_folders_are_read_once(tmp_path):
    for name in ("corpus/fr/anna/a", "elsewhere/b"):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, 0.5)
    links = {
        "ben": "../../elsewhere",
        "carl": "../../elsewhere",
        "anna/eva": "../ben",
        "anna/loop": "..",
        "dora": "dora",
    }
    for name, target in links.items():
        (tmp_path / "corpus" / "fr" / name).symlink_to(target)
    clips = folder.read_clips(tmp_path / "corpus" / "fr")
    assert [(clip.id, clip.speaker) for clip in clips] == [("anna/a", "anna"), ("ben/b", "ben")]


def test_given_splits_are_kept_and_a_sentence_is_in_one_of_them(tmp_path):
    for split, count in (("train", 5), ("validation", 2), ("test", 2)):
        for i in range(count):
            write_text(tmp_path / "corpus" / "fr" / split / f"{i}.wav", sentence("fr", i + 6 * (split == "train")))
    write_text(tmp_path / "corpus" / "fr" / "train" / "repeated.wav", sentence("fr", 0).upper())
    report = prepare(tmp_path / "corpus", tmp_path)
    assert report.dropped == {
        ("fr", "train", "sentence in another split"): 1,
        ("fr", "dev", "sentence in another split"): 2,
    }
    assert report.kept == {("fr", "train"): 5, ("fr", "test"): 2}


def test_tables_of_each_layout_give_transcripts_and_speakers(tmp_path):
    corpus = tmp_path / "corpus" / "fr"
    (corpus / "train").mkdir(parents=True)
    for i in range(8):
        write_clip(corpus / "wavs" / f"LJ-{i}.wav")
        write_clip(corpus / "train" / f"{i}.flac")
    lines = [f"LJ-{i}|{i}|{sentence('fr', i)}" for i in range(8)]
    (corpus / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"{i}.flac\t{sentence('fr', i + 12)}\ts{i}" for i in range(8)]
    (corpus / "train" / "transcripts.tsv").write_text("\n".join(["path\ttext\tspeaker", *rows]), encoding="utf-8")
    clips = {clip.path.name: clip for clip in folder.read_clips(corpus)}
    assert clips["LJ-3.wav"].text == sentence("fr", 3) and clips["LJ-3.wav"].speaker == ""
    assert clips["3.flac"][2:5] == (sentence("fr", 15), "s3", "train")
    assert len(clips) == 16 and not any(clip.problem for clip in clips.values())


def test_everything_that_is_dropped_is_counted_with_a_reason(tmp_path):
    corpus = make_folder(tmp_path / "corpus", {"fr": "fr"}, num_clips=12) / "fr"
    write_clip(corpus / "silent.wav")
    write_clip(corpus / "clip 0.flac")
    write_text(corpus / "digits.wav", "12 bis")
    write_text(corpus / "empty.wav", "")
    write_clip(corpus / "latin1.wav").with_suffix(".txt").write_bytes("été".encode("latin1"))
    write_text(corpus / "broken.wav", "onze onze")
    (corpus / "broken.wav").write_bytes(b"RIFF")
    write_clip(corpus / "twice.wav")
    (corpus / "metadata.csv").write_text("twice|un\ntwice|deux\nmissing|trois\n../../etc/passwd|un\n", encoding="utf-8")
    (corpus / ".hidden.wav").touch()
    report = prepare(tmp_path / "corpus", tmp_path)
    dropped = {reason: count for (_, _, reason), count in report.dropped.items()}
    assert dropped == {
        "no transcript": 1,
        "named twice": 2,
        "foreign characters": 1,
        "no text": 1,
        "transcript not in UTF-8": 1,
        "unreadable audio": 1,
        "no audio": 2,
    }
    assert sum(report.kept.values()) == 12


def test_ids_of_different_names_differ(tmp_path):
    for i, name in enumerate(("a b", "a_b", "a/b", "a-b", "c d")):
        write_text(tmp_path / "corpus" / "fr" / f"{name}.wav", sentence("fr", i))
    prepare(tmp_path / "corpus", tmp_path)
    ids = [supervision.id for split in SPLITS for supervision in supervisions(tmp_path, split)]
    assert len(set(ids)) == 5 and "fr-c_d" in ids


@pytest.mark.parametrize(
    ("prepare_corpus", "message"),
    [
        (
            lambda corpus: write_text(corpus / "wavs" / "1.wav", "un"),
            r"no audio of a language in .*found: wavs/.*french",
        ),
        (lambda corpus: write_text(corpus / "dev" / "1.wav", "un"), r"no audio of a language in .*found: dev/"),
        (lambda corpus: (corpus / "fr").mkdir(parents=True), "no audio of a language in"),
        (
            lambda corpus: [write_clip(corpus / f"{i:02}.wav") for i in range(12)],
            r"found: 00\.wav, .*, 09\.wav, and 2 more\): expected a folder per language, .* such as .*/corpus/french,",
        ),
        (lambda corpus: corpus.write_text("un"), r"no audio of a language in .*found: a file"),
        (lambda corpus: None, r"no audio of a language in .*found: nothing"),
    ],
)
def test_a_folder_without_languages_is_an_error(tmp_path, prepare_corpus, message):
    prepare_corpus(tmp_path / "corpus")
    with pytest.raises(CorpusError, match=message):
        folder.discover_languages(tmp_path / "corpus")


def test_too_few_sentences_and_a_missing_language_are_errors(tmp_path):
    write_text(tmp_path / "corpus" / "fr" / "1.wav", "un")
    write_clip(tmp_path / "corpus" / "fr" / "2.wav")
    with pytest.raises(
        CorpusError, match=r"french in .*/corpus: 1 training utterances .*dropped before: 1 no transcript"
    ):
        prepare(tmp_path / "corpus", tmp_path)
    with pytest.raises(CorpusError, match=r"no folder of german in .*: expected .*/de or .*/german"):
        prepare(tmp_path / "corpus", tmp_path, "de")
