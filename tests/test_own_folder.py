"""A new user's folder: preparation, training and decoding with no option but its path and the size of the model."""

import os
import subprocess
import sys
from pathlib import Path

from own_folder import make_own_folder

from icefall_pathways.corpora.description import CorpusDescription
from icefall_pathways.files import read_json

RECIPE = Path(__file__).resolve().parents[1] / "egs" / "mls" / "ASR"
SMALL = (
    "--num-encoder-layers 2 --encoder-dim 16 --nhead 2 --dim-feedforward 32 --cnn-module-kernel 3 --decoder-dim 16 "
    "--joiner-dim 16 --subsampling-channels 2,4 --num-workers 0 --max-duration 10 --tensorboard 0 --num-updates 50"
)


def run(script, *words):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    done = subprocess.run([script, *map(str, words)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_twenty_clips_in_two_languages_are_prepared_trained_and_decoded(tmp_path):
    clips, data, exp = make_own_folder(tmp_path / "my clips"), tmp_path / "data", tmp_path / "exp"
    folders = ("--data-dir", data, "--exp-root", exp)  # those of the user are in the recipe
    speech = "--content 'names transcripts' --hours-per-language 0.004 --dev-utterances 2 --test-utterances 1"
    synthetic = ("--synthetic-updates", 4, "--synthetic-args", speech)
    run(RECIPE / "run.sh", "--corpus-dir", clips, *folders, "--stop-stage", 1, "--train-args", SMALL, *synthetic)
    assert read_json(exp / "dense" / "config.json")["training"]["init_from"] == str(exp / "dense-synthetic")
    assert CorpusDescription.load(data / "fbank").label == "my_clips"
    decode = RECIPE / "pruned_transducer_pathways" / "decode.py"
    run(sys.executable, decode, "--exp-dir", exp / "dense", "--manifest-dir", data / "fbank")
    (summary,) = (exp / "dense").glob("*/wer-summary-all-my_clips-test-*.json")
    languages = read_json(summary)["languages"]
    assert {code: scores["utterances"] for code, scores in languages.items()} == {"de": 1, "fr": 1}
    assert len(list(summary.parent.glob("recogs-my_clips-*-test-*.txt"))) == 2
