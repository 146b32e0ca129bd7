"""The whole recipe, from a corpus of one minute to the report, with a model of two small layers.

It runs with the embedded corpus in an empty folder, and with a folder in MLS layout and languages outside the demo.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icefall_pathways.corpora.mini import MiniCorpusConfig, make_mini_corpus
from icefall_pathways.files import read_json
from icefall_pathways.languages import get_language
from icefall_pathways.pathways.masks import PathwayMasks

RECIPE = Path(__file__).resolve().parents[1] / "egs" / "mls" / "ASR"

MODEL = (
    "--num-encoder-layers 2 --encoder-dim 16 --nhead 2 --dim-feedforward 32 --cnn-module-kernel 3 "
    "--decoder-dim 16 --joiner-dim 16 --subsampling-channels 2,4"
)
PREPARE = "--hours-per-language 0.01 --dev-utterances 3 --test-utterances 4 --num-jobs 1"
TRAINING = "--max-duration 10 --num-workers 0 --ctc-loss-scale 1 --lr-warmup 2 --tensorboard 0"


def run(script, options, folder, fails=False):
    """Run a script of the recipe; return its output, or its error output if it is expected to fail."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    done = subprocess.run(
        [RECIPE / script, *words], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


MINI = ("mini", "en it")
MLS = ("mls", "de pl")


@pytest.fixture(scope="module", params=[MINI, MLS], ids=["mini", "mls"])
def finished(request, tmp_path_factory):
    """Run the recipe in a new folder; return the folder, the language codes and the output."""
    corpus, languages = request.param
    folder = tmp_path_factory.mktemp("recipe")
    prepare = PREPARE
    if corpus == "mls":
        sizes = {"hours_per_language": 0.01, "dev_utterances": 3, "test_utterances": 4, "num_jobs": 1}
        make_mini_corpus(MiniCorpusConfig(corpus_dir=folder / "mls", languages=languages, **sizes))
        prepare = "--num-jobs 1"
    options = {
        "corpus": corpus,
        "corpus-dir": folder / "mls",
        "data-dir": folder / "data",
        "exp-root": folder / "exp",
        "languages": languages,
        "vocab-size": "60",
        "prepare-args": prepare,
        "train-args": f"{MODEL} {TRAINING} --num-updates 6",
        "search-args": TRAINING,
        "finetune-args": TRAINING,
        "mask-updates": "4",
        "finetune-updates": "4",
    }
    return folder, languages.split(), run("run.sh", options, folder)


@pytest.fixture
def corpus(request):
    """Return the name of the corpus of `finished`."""
    return request.node.callspec.params["finished"][0]


def test_table_and_report_contain_the_three_systems(finished):
    folder, _, printed = finished
    for system in ("dense", "LAP", "pathways"):
        assert f"│ {system}" in printed or f" {system} │" in printed
    assert f"Report: {folder}/exp/report.html" in printed
    assert "6 + 0 + 4" in printed and printed.count("6 + 8 + 4") == 2
    page = (folder / "exp" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 3 + 2 * 3


def test_masks_have_the_target_sparsity_and_lap_has_one_mask(finished):
    folder, languages, _ = finished
    lap = PathwayMasks.load(folder / "exp" / "lap" / "masks.safetensors")
    pathways = PathwayMasks.load(folder / "exp" / "pathways" / "masks.safetensors")
    for masks in (lap, pathways):
        assert list(masks.languages) == languages
        assert masks.sparsity(languages[0]) == pytest.approx(0.7, abs=0.01)
    assert lap.overlap(*languages) == 1 > pathways.overlap(*languages)


def test_streaming_and_offline_decoding_read_the_same_utterances(finished, corpus):
    """Compare references only: after a few updates many scores are tied, so compressed features change hypotheses."""
    folder, languages, _ = finished
    for system in ("dense-continued", "lap", "pathways"):
        for language in languages:
            pattern = f"modified_beam_search/recogs-{corpus}-{get_language(language).name}-test-*"
            (offline,) = (folder / "exp" / system).glob(pattern)
            (streamed,) = (folder / "exp" / system / "streaming").glob(pattern)
            references = [line for line in offline.read_text().splitlines() if "\tref=" in line]
            assert len(references) == 4
            assert references == [line for line in streamed.read_text().splitlines() if "\tref=" in line]


def test_summary_is_written_as_json(finished, corpus):
    folder, languages, _ = finished
    method = folder / "exp" / "pathways" / "streaming" / "modified_beam_search"
    summary = read_json(next(method.glob(f"wer-summary-all-{corpus}-test-*.json")))
    assert list(summary["languages"]) == languages
    assert all(scores["utterances"] == 4 for scores in summary["languages"].values())


@pytest.mark.parametrize("finished", [MINI], ids=["mini"], indirect=True)
def test_study_skips_finished_steps(finished):
    """Run two systems from a finished dense model, and run the study again."""
    folder, languages, _ = finished
    study = folder / "study"
    shutil.copytree(folder / "exp" / "dense", study / "seed-3" / "dense")
    (study / "seed-3" / "dense" / ".done").touch()
    options = {
        "corpus-dir": folder / "mls",
        "data-dir": folder / "data",
        "study-dir": study,
        "languages": " ".join(languages),
        "vocab-size": "60",
        "hours": "",
        "prepare-args": f"{PREPARE} --content 'numbers calendar'",  # that of the finished preparation
        "search-args": TRAINING,
        "finetune-args": TRAINING,
        "dynamic-args": "--prune-every 2",
        "decode-args": "",
        "mask-updates": "2",
        "finetune-updates": "4",
        "rounds": "1",
        "seeds": "3",
        "sparsities": "0.8",
        "systems": "lsp dynamic",
        "splits": "test",
        "at-once": "2",
    }
    printed = run("run_study.sh", options, folder)
    for row in ("LSP", "dynamic pathways"):
        assert f"\n| {row} | " in printed
    assert "\n| LSP | 6 + 4 + 4 | " in printed and "\n| dynamic pathways | 6 + 0 + 8 | 0 | " in printed
    systems = study / "seed-3" / "sparsity-0.8"
    updates = {"dynamic": 8, "lsp/en": 2, "lsp/it": 2}
    for name, num_updates in updates.items():
        assert (systems / name / f"checkpoint-{num_updates}.pt").exists()
        masks = PathwayMasks.load(systems / name / "masks.safetensors")
        assert all(masks.sparsity(language) == pytest.approx(0.8, abs=0.01) for language in masks.languages)
    finished_jobs = [line for line in run("run_study.sh", options, folder).splitlines() if "already finished" in line]
    assert [line.split()[1] for line in finished_jobs if "seed-3" in line] == [
        *("seed-3-dense:", "seed-3-sparsity-0.8-imp:", "seed-3-sparsity-0.8-dynamic:")
    ]
    message = run("run_study.sh", options | {"rounds": "2"}, folder, fails=True)
    assert "was started with other settings (rounds: now '2', stored '1')" in message
