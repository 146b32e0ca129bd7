"""Phrases of Tux Paint: splits by phrase in all languages, dropped clips, packages."""

import subprocess

import pytest
from lhotse import SupervisionSet
from public_layouts import make_package, sentence, write_stamp

from icefall_pathways.corpora import stamps
from icefall_pathways.corpora.layout import SPLITS, SplitFiles, describe_corpus
from icefall_pathways.corpora.validation import CorpusError
from icefall_pathways.languages import TextOptions, get_language, parse_languages


def prepare(corpus, output, languages="fr es"):
    describe_corpus(output, "stamps", TextOptions())
    return stamps.prepare_manifests(corpus, output, parse_languages(languages), "train")


def phrases(output, language):
    """Return the names of the phrases by split."""
    files = [SplitFiles(output, "stamps", get_language(language), split) for split in SPLITS]
    return [{item.id.partition("-")[2] for item in SupervisionSet.from_file(file.supervisions)} for file in files]


def make_stamps(folder, count=20):
    for i in range(count):
        write_stamp(
            folder, f"animals/{i}" if i else "plants/0", {"fr": sentence("fr", i), "es": sentence("fr", i), "nl": "een"}
        )
    return folder


def test_a_phrase_is_in_one_split_in_all_languages(tmp_path):
    corpus = make_stamps(tmp_path / "corpus")
    write_stamp(corpus, "same/fr", {"fr": sentence("fr", 3), "es": "otra"})
    write_stamp(corpus, "same/es", {"fr": "autre", "es": "otra"})
    report = prepare(corpus, tmp_path / "data" / "manifests")
    french, spanish = (phrases(tmp_path / "data" / "manifests", language) for language in ("fr", "es"))
    assert french == spanish and sum(map(len, french)) == 22 and min(map(len, french)) > 1
    assert sum({"same-fr", "same-es", "animals-3"} <= split for split in french) == 1
    assert report.notes["fr", "test", "held out by phrase"] == report.kept["fr", "test"]
    prepare(corpus, tmp_path / "one" / "manifests", "es")
    assert phrases(tmp_path / "one" / "manifests", "es") == spanish


def test_numbers_mismatched_and_empty_clips_are_dropped_and_counted(tmp_path):
    corpus = make_stamps(tmp_path / "corpus")
    write_stamp(corpus, "money", {"fr": "la 1 euro", "es": "uno"})
    write_stamp(corpus, "long", {"fr": "un " * 40, "es": "uno"})
    write_stamp(corpus, "slow", {"fr": "un oui", "es": "uno"}, {"fr": 9.0, "es": 1.0})
    write_stamp(corpus, "empty", {"fr": "zut", "es": "uno"}, {"fr": 0.0, "es": 1.0})
    (corpus / "untold_desc_fr.ogg").write_bytes((corpus / "money_desc_fr.ogg").read_bytes())
    report = prepare(corpus, tmp_path / "data" / "manifests", "fr")
    dropped = {}
    for (_, _, reason), count in report.dropped.items():
        dropped[reason] = dropped.get(reason, 0) + count
    assert dropped == {
        "numbers in the transcript": 1,
        "duration does not match the transcript": 2,
        "unreadable audio": 1,
        "no transcript": 1,
    }
    assert sum(report.kept.values()) == 20


def test_a_package_is_unpacked_once_and_only_its_clips_and_texts(tmp_path):
    content = tmp_path / "content"
    make_stamps(content / "usr" / "share" / "stamps")
    (content / "usr" / "share" / "stamps" / "picture.png").touch()
    package = make_package(content, tmp_path / f"{stamps.PACKAGE}_1_all.deb")
    output = tmp_path / "data" / "manifests"
    assert sum(prepare(package, output).kept.values()) == 40
    unpacked = tmp_path / "data" / "stamps"
    suffixes = {path.suffix for path in unpacked.rglob("*") if path.is_file() and path.name != ".complete"}
    assert suffixes == {".txt", ".ogg"}
    package.write_bytes(b"damaged")
    assert sum(prepare(tmp_path, tmp_path / "data" / "again").kept.values()) == 40
    with pytest.raises(CorpusError, match=r"cannot unpack .*_1_all.deb .*: remove it and download it again"):
        prepare(package, tmp_path / "other" / "manifests")


def test_a_folder_without_stamps_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"neither \*_desc_LANGUAGE.ogg nor tuxpaint-stamps-default\*.deb in"):
        prepare(tmp_path, tmp_path / "data" / "manifests")
    make_stamps(tmp_path / "corpus", count=3)
    with pytest.raises(CorpusError, match=r"no \*_desc_da.ogg in"):
        prepare(tmp_path / "corpus", tmp_path / "data" / "manifests", "da")


def test_the_package_is_downloaded_by_apt_get(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps.shutil, "which", lambda _: "apt-get")
    calls = []

    def run(command, cwd, **_options):
        calls.append(command)
        (cwd / f"{stamps.PACKAGE}_1_all.deb").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(stamps.subprocess, "run", run)
    for _ in range(2):
        stamps.acquire(tmp_path / "download", [], 1)
    assert calls == [["apt-get", "download", "tuxpaint-stamps-default"]]


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package")
    monkeypatch.setattr(stamps.shutil, "which", lambda _: "apt-get")
    monkeypatch.setattr(stamps.subprocess, "run", lambda *_arguments, **_options: failed)
    with pytest.raises(CorpusError, match=r"failed \(E: Unable to locate package\): run apt-get update first, or get"):
        stamps.acquire(tmp_path, [], 1)
    monkeypatch.setattr(stamps.shutil, "which", lambda _: None)
    with pytest.raises(CorpusError, match=r"this machine has no apt-get .*--corpus-dir"):
        stamps.acquire(tmp_path, [], 1)
