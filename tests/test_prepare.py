"""prepare.sh, as a user calls it, on a folder in MLS layout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mls_folder import make_language

RECIPE = Path(__file__).resolve().parents[1] / "egs" / "mls" / "ASR"


def prepare(*words, cwd, script="prepare.sh"):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    return subprocess.run(
        [RECIPE / script, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of German and Polish, prepared; the options that did it."""
    folder = tmp_path_factory.mktemp("prepare")
    for code in ("de", "pl"):
        make_language(folder / "corpus", code)
    options = ["--corpus", "mls", "--corpus-dir", folder / "corpus", "--languages", "de pl"]
    options += ["--data-dir", folder / "data", "--vocab-size", "32", "--num-jobs", "1"]
    done = prepare(*options, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, options, done.stdout


def test_features_and_tokens_are_there(prepared):
    folder, _, printed = prepared
    for language in ("german", "polish"):
        for split in ("train", "dev", "test"):
            assert (folder / "data" / "fbank" / f"mls-{language}_cuts_{split}.jsonl.gz").exists()
    tokens = (folder / "data" / "lang_bpe_32" / "tokens.txt").read_text().splitlines()
    assert len(tokens) == 32 and tokens[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert "│ de         │ train   │" in printed


def test_a_second_call_does_nothing(prepared):
    folder, options, _ = prepared
    before = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")}
    done = prepare(*options, cwd="/")
    assert done.returncode == 0 and done.stdout.count("is finished") == 4
    assert {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")} == before


def test_other_options_in_the_same_folder_are_refused(prepared):
    folder, options, _ = prepared
    done = prepare(*options, "--languages", "de", cwd=folder)
    assert done.returncode != 0
    assert "was finished in" in done.stderr and "use another --data-dir" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speed", "1"], "error: unknown option --speed; --help lists them"),
        (["--corpus", "x"], "error: --corpus x: expected mini or mls"),
        (["--languages"], "error: option --languages needs a value"),
        (["de"], "error: unexpected word 'de'"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, words, message):
    done = (
        prepare(*words, "--data-dir", tmp_path / "data", cwd=tmp_path)
        if words != ["--languages"]
        else prepare(*words, cwd=tmp_path)
    )
    assert done.returncode != 0 and done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1


def test_what_is_typed_wins_over_the_settings_of_the_demo(tmp_path):
    words = ["--demo", "1", "--exp-root", tmp_path / "my own", "--stage", "6"]
    done = prepare(*words, cwd=tmp_path, script="run.sh")
    assert done.returncode != 0 and f"{tmp_path}/my own/dense-continued" in done.stderr


def test_the_settings_of_the_study_are_those_of_its_encoder(tmp_path):
    words = ["--encoder-type", "zipformer", "--mask-updates", "7", "--study-dir", tmp_path, "--languages", "klingon"]
    done = prepare(*words, cwd=tmp_path, script="run_study.sh")
    assert done.returncode != 0 and "unknown language 'klingon'" in done.stderr
    settings = (tmp_path / "settings.txt").read_text()
    assert "--zipformer micro" in settings and 'mask_updates="7"' in settings and 'finetune_updates="1500"' in settings


def test_a_language_nobody_knows_is_named(tmp_path):
    done = prepare("--languages", "klingon", "--data-dir", tmp_path / "d", "--corpus-dir", tmp_path / "c", cwd=tmp_path)
    assert done.returncode != 0 and "error: unknown language 'klingon'" in done.stderr
    assert "Traceback" not in done.stderr
