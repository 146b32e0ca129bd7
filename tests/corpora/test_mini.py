import dataclasses
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from lhotse.recipes.mls import prepare_mls

from icefall_pathways.corpora.mini import SPLITS, MiniCorpusConfig, make_mini_corpus
from icefall_pathways.files import read_json
from icefall_pathways.languages import MLS_LANGUAGES
from icefall_pathways.sharding.jsonl import write_jsonl

SCRIPT = Path(__file__).parents[2] / "egs" / "mls" / "ASR" / "local" / "make_mini_corpus.py"
OPTIONS = ["--languages", "en nl", "--hours", "en=0.012 nl=0.006", "--dev-utterances", "6", "--test-utterances", "8"]


def config_for(corpus_dir: Path, **options: object) -> MiniCorpusConfig:
    small = MiniCorpusConfig(
        corpus_dir, "en nl", hours="en=0.012 nl=0.006", dev_utterances=6, test_utterances=8, num_jobs=1
    )
    return dataclasses.replace(small, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def transcripts(corpus: Path, name: str, split: str) -> dict[str, str]:
    lines = (corpus / f"mls_{name}" / split / "transcripts.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "mls"
    make_mini_corpus(config_for(folder, num_jobs=2))
    return folder


def test_files_do_not_depend_on_the_number_of_processes_and_languages(corpus: Path, tmp_path: Path) -> None:
    make_mini_corpus(config_for(tmp_path, languages="nl", hours="nl=0.006"))
    assert contents(tmp_path / "mls_dutch") == contents(corpus / "mls_dutch")


def test_a_shorter_corpus_is_a_prefix_of_a_longer_one(corpus: Path, tmp_path: Path) -> None:
    make_mini_corpus(config_for(tmp_path, languages="nl", hours="nl=0.009", dev_utterances=9))
    longer, shorter = contents(tmp_path / "mls_dutch"), contents(corpus / "mls_dutch")
    audio = [path for path in shorter if path.endswith(".flac")]
    assert len(audio) < sum(path.endswith(".flac") for path in longer)
    assert all(longer[path] == shorter[path] for path in audio)


def test_a_language_is_added_to_a_complete_corpus(tmp_path: Path) -> None:
    options = {"hours": "", "hours_per_language": 0.002, "dev_utterances": 1, "test_utterances": 1}
    make_mini_corpus(config_for(tmp_path, languages="nl", **options))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mls_dutch").rglob("*") if path.is_file()}
    make_mini_corpus(config_for(tmp_path, languages="it nl", **options))
    assert (tmp_path / "mls_italian" / "train" / "transcripts.txt").exists()
    audio = [path for path in before if path.suffix == ".flac"]
    assert audio and all(path.stat().st_mtime_ns == before[path] for path in audio)
    assert read_json(tmp_path / "mini_corpus.json")["finished"] == ["it", "nl"]


def test_another_seed_gives_another_corpus(corpus: Path, tmp_path: Path) -> None:
    make_mini_corpus(config_for(tmp_path, languages="nl", hours="nl=0.006", seed=43))
    assert transcripts(tmp_path, "dutch", "test") != transcripts(corpus, "dutch", "test")


def test_splits_have_disjoint_sentences_and_speakers(corpus: Path) -> None:
    for name in ("english", "dutch"):
        sentences: set[str] = set()
        speakers: set[str] = set()
        for split in SPLITS:
            lines = transcripts(corpus, name, split)
            split_speakers = {handle.split("_")[0] for handle in lines}
            assert not sentences & set(lines.values())
            assert not speakers & split_speakers
            sentences |= set(lines.values())
            speakers |= split_speakers


def test_hours_and_numbers_of_utterances_follow_the_options(corpus: Path) -> None:
    for name, hours in (("english", 0.012), ("dutch", 0.006)):
        flacs = list((corpus / f"mls_{name}" / "train").rglob("*.flac"))
        seconds = [soundfile.info(path).duration for path in flacs]
        assert 0 <= sum(seconds) - 3600 * hours < max(seconds)
        assert len(flacs) == len(transcripts(corpus, name, "train"))
        assert len(transcripts(corpus, name, "dev")) == len(list((corpus / f"mls_{name}" / "dev").rglob("*.flac"))) == 6
        assert len(transcripts(corpus, name, "test")) == 8


def test_lhotse_reads_the_folder(corpus: Path, tmp_path: Path) -> None:
    manifests = prepare_mls(corpus, opus=False)
    assert set(manifests) == {"english", "dutch"}
    for name, splits in manifests.items():
        language = next(language for language in MLS_LANGUAGES.values() if language.name == name)
        for split in SPLITS:
            recordings, supervisions = splits[split]["recordings"], splits[split]["supervisions"]
            assert {s.id: s.text for s in supervisions} == transcripts(corpus, name, split)
            assert {r.id for r in recordings} == {s.id for s in supervisions}
            assert {(r.sampling_rate, r.num_channels) for r in recordings} == {(16000, 1)}
            assert {s.gender for s in supervisions} <= {"F", "M"}
            assert all(set(s.text) <= language.alphabet for s in supervisions)


def test_segments_metainfo_and_limited_supervision_match_the_audio(corpus: Path) -> None:
    folder = corpus / "mls_english"
    rows = [line.split("|") for line in (folder / "metainfo.txt").read_text().splitlines()]
    assert " | ".join(word.strip() for word in rows[0]) == (
        "SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER"
    )
    assert sum(float(row[3]) for row in rows[1:] if row[2].strip() == "train") == pytest.approx(0.72, rel=0.1)
    handles = list(transcripts(corpus, "english", "train"))
    segments = [line.split("\t") for line in (folder / "train" / "segments.txt").read_text().splitlines()]
    assert [row[0] for row in segments] == handles
    assert all(0 == float(row[2]) < float(row[3]) < 10 for row in segments)
    limited = folder / "train" / "limited_supervision"
    # 43 seconds of speech reach neither the second ten minutes nor the second hour.
    assert [path.relative_to(limited).as_posix() for path in limited.rglob("*.txt")] == ["1hr/0/handles.txt"]
    assert (limited / "1hr" / "0" / "handles.txt").read_text().split() == handles


def test_a_complete_corpus_is_not_changed(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    make_mini_corpus(config_for(corpus))
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    assert "already complete" in capsys.readouterr().out


def test_an_interrupted_corpus_is_completed(corpus: Path, tmp_path: Path) -> None:
    """A run reports a full disk; the next run keeps its files and produces the corpus of an uninterrupted run."""
    command = [sys.executable, str(SCRIPT), "--corpus-dir", str(tmp_path / "mls"), "--num-jobs", "1", *OPTIONS]

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    stopped = subprocess.run(command, preexec_fn=limit_files, capture_output=True, text=True)
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    error = stopped.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "(File too large): " in error and "GB are free; free some" in error
    kept = [path for path in (tmp_path / "mls").rglob("*.flac") if not path.name.startswith(".")]
    assert 0 < len(kept) < sum(path.endswith(".flac") for path in contents(corpus))
    times = {path: path.stat().st_mtime_ns for path in kept}
    unfinished = kept[0].with_name(f".{kept[0].stem}-killed.flac")
    unfinished.write_bytes(b"fLaC")
    assert not read_json(tmp_path / "mls" / "mini_corpus.json")["finished"]

    make_mini_corpus(config_for(tmp_path / "mls"))
    assert contents(tmp_path / "mls") == contents(corpus)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_corpus_with_different_options_is_replaced_only_with_overwrite(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "mls")
    with pytest.raises(ValueError, match=r"made with seed=42: .*--overwrite 1"):
        make_mini_corpus(config_for(tmp_path / "mls", seed=1))
    assert contents(tmp_path / "mls") == contents(corpus)
    make_mini_corpus(config_for(tmp_path / "mls", languages="it", hours="it=0.002", overwrite=True))
    assert not (tmp_path / "mls" / "mls_english").exists()
    assert transcripts(tmp_path / "mls", "italian", "dev")


def test_a_folder_of_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files of another origin"):
        make_mini_corpus(config_for(tmp_path, overwrite=True))
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": "en xx", "hours": ""}, "the corpus mini does not offer xx"),
        ({"hours": "en=much"}, "--hours 'en=much', at 'en=much'"),
        ({"hours": "en=0"}, "0.0 hours of english"),
        ({"hours": "en=inf"}, "inf hours of english"),
        ({"hours": "fr=1"}, "--hours names fr: expected only --languages 'en nl'"),
        ({"content": "poems"}, "--content 'poems': expected some of numbers, calendar, phrases"),
        ({"content": "numbers", "highest_number": 0}, "too few english sentences"),
        ({"content": "transcripts"}, "--transcripts-dir '': expected both the type transcripts and a folder"),
        ({"transcripts_dir": "data"}, "--transcripts-dir 'data': expected both the type transcripts and a folder"),
        (
            {"content": "transcripts", "transcripts_dir": "none"},
            "expected the folder of manifests of a corpus prepared",
        ),
        ({"dev_utterances": 0}, "--dev-utterances is 0: expected at least 1"),
        ({"highest_number": -1}, "--highest-number is -1: expected at least 0"),
    ],
)
def test_invalid_options_are_rejected_before_any_file_is_written(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        make_mini_corpus(config_for(tmp_path / "mls", **options))
    assert message in str(caught.value)
    assert not (tmp_path / "mls").exists()


def test_sentences_are_transcripts_of_another_corpus(tmp_path: Path) -> None:
    texts = [f"maak het kwaaie-meid {word}" for word in ("een", "twee", "drie", "vier", "vijf", "zes", "zeven")] * 2
    path = tmp_path / "manifests" / "stamps-dutch_supervisions_train.jsonl.gz"
    path.parent.mkdir()
    write_jsonl(path, ({"id": str(index), "text": text} for index, text in enumerate([*texts, " "])))
    options = {"languages": "nl", "hours": "nl=0.02", "seed": 3, "dev_utterances": 1, "test_utterances": 1}
    config = config_for(tmp_path / "mls", content="transcripts names", transcripts_dir=str(path.parent), **options)
    make_mini_corpus(config)
    sentences = {split: set(transcripts(tmp_path / "mls", "dutch", split).values()) for split in SPLITS}
    trained = sentences["train"] & set(texts)
    assert trained and sentences["train"] - trained  # and names
    assert not sentences["train"] & (sentences["dev"] | sentences["test"])
    with pytest.raises(ValueError, match=r"made with transcripts_dir='.*manifests'.*--overwrite 1"):
        make_mini_corpus(dataclasses.replace(config, transcripts_dir=str(shutil.copytree(path.parent, tmp_path / "b"))))
