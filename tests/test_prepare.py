"""Data preparation by prepare.sh, run as a user does, on a folder in MLS layout."""

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
    """Prepare a corpus of German and Polish; return its folder, the options, and the output."""
    folder = tmp_path_factory.mktemp("prepare")
    for code in ("de", "pl"):
        make_language(folder / "corpus", code)
    options = ["--corpus", "mls", "--corpus-dir", folder / "corpus", "--languages", "de pl"]
    options += ["--data-dir", folder / "data", "--vocab-size", "32", "--num-jobs", "1"]
    done = prepare(*options, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, options, done.stdout


def test_features_and_tokens_are_written(prepared):
    folder, _, printed = prepared
    for language in ("german", "polish"):
        for split in ("train", "dev", "test"):
            assert (folder / "data" / "fbank" / f"mls-{language}_cuts_{split}.jsonl.gz").exists()
    tokens = (folder / "data" / "lang_bpe_32" / "tokens.txt").read_text().splitlines()
    assert len(tokens) == 32 and tokens[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert "│ de         │ train   │" in printed


def test_second_run_changes_nothing(prepared):
    folder, options, _ = prepared
    before = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")}
    done = prepare(*options, cwd="/")
    assert done.returncode == 0 and done.stdout.count(": already finished") == 5
    assert {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*")} == before


def test_different_options_in_the_same_folder_are_rejected(prepared):
    folder, options, _ = prepared
    done = prepare(*options, "--perturb-speed", "1", cwd=folder)
    assert done.returncode != 0
    assert "was finished in" in done.stderr and "use another --data-dir" in done.stderr


def test_a_language_is_added_and_the_tokenizer_is_kept(prepared):
    folder, options, _ = prepared
    make_language(folder / "corpus", "nl")
    before = {path: path.stat().st_mtime_ns for path in (folder / "data").rglob("*.*") if path.is_file()}
    done = prepare(*options, "--languages", "de nl pl", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "data" / "fbank" / "mls-dutch_cuts_train.jsonl.gz").exists()
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert not any(name.startswith(("mls-", "bpe")) for name in changed)
    assert "kept" in done.stdout and "--retrain-tokenizer 1" in done.stdout and "│ nl " in done.stdout
    model = (folder / "data" / "lang_bpe_32" / "bpe.model").read_bytes()
    again = prepare(*options, "--languages", "de nl pl", "--retrain-tokenizer", "1", cwd=folder)
    assert again.returncode == 0, again.stderr[-2000:]
    assert (folder / "data" / "lang_bpe_32" / "bpe.model").read_bytes() != model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speed", "1"], "Unrecognized options: --speed"),
        (["--corpus", "x"], "invalid choice"),
        (["--languages"], "Missing value for argument '--languages'"),
        (["de"], "Unrecognized options: de"),
    ],
)
def test_invalid_option_is_reported(tmp_path, words, message):
    done = prepare("--data-dir", tmp_path / "data", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "./prepare.sh --help" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "data").exists()


def test_given_options_take_precedence_over_the_settings_of_the_demo(tmp_path):
    words = ["--demo", "1", "--exp-root", tmp_path / "my own", "--stage", "6"]
    done = prepare(*words, cwd=tmp_path, script="run.sh")
    assert done.returncode == 1 and f"{tmp_path}/my own/dense-continued" in done.stderr
    assert "error: failed: report (see its output above). Run the same command again to resume" in done.stderr


def test_unknown_language_is_reported(tmp_path):
    done = prepare("--languages", "elvish", "--data-dir", tmp_path / "d", "--corpus-dir", tmp_path / "c", cwd=tmp_path)
    assert done.returncode != 0 and "error: unknown language 'elvish'" in done.stderr
    assert "Traceback" not in done.stderr


def test_script_called_through_a_link_runs_in_the_folder_of_the_recipe(tmp_path):
    (tmp_path / "link.sh").symlink_to(RECIPE / "prepare.sh")
    words = ["--corpus", "mls", "--corpus-dir", "local", "--data-dir", tmp_path / "data", "--dry-run", "1"]
    done = prepare(*words, cwd=tmp_path, script=tmp_path / "link.sh")
    assert done.returncode == 0 and "The corpus is in local" in done.stdout
