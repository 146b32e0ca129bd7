"""An experiment folder is self-contained: it works after it is moved and its training data is deleted."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_run
import torch
from speech_cuts import TEXTS

from icefall_pathways import Pathways
from icefall_pathways.data.features import FbankConfig
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.decoding.config import DecodeConfig
from icefall_pathways.decoding.pretrained import load_trained_model
from icefall_pathways.experiment import checkpoints, layout
from icefall_pathways.experiment.model_files import choose_tokenizer, find_tokenizer, store_model_files
from icefall_pathways.training import runs
from icefall_pathways.training.config import PruningConfig

SCRIPT = Path(__file__).resolve().parents[2] / "egs/mls/ASR/pruned_transducer_pathways/transcribe.py"
STORED = {layout.BPE_MODEL_FILE, layout.TOKENS_FILE, layout.FEATURES_FILE}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a corpus and an experiment that was trained on it; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run.make_corpus(folder / "corpus")
    runs.train(tiny_run.config(folder / "corpus", folder / "exp", num_updates=2))
    return folder


@pytest.fixture
def moved(trained, tmp_path):
    """Copy the experiment, and the corpus without its tokenizer, elsewhere; return the copied experiment folder."""
    shutil.copytree(trained / "exp", tmp_path / "moved")
    shutil.copytree(trained / "corpus" / "fbank", tmp_path / "corpus" / "fbank")
    path = tmp_path / "moved" / "checkpoint-2.pt"
    checkpoint = checkpoints.read(path)
    checkpoint["config"]["training"]["bpe_model"] = str(tmp_path / "deleted" / "bpe.model")
    checkpoints.save(checkpoint, path)
    return tmp_path / "moved"


def _config(moved, **options):
    """Return a training run on the copied corpus, without --bpe-model."""
    return tiny_run.config(moved.parent / "corpus", moved.parent / "exp", bpe_model=None, num_updates=2, **options)


def test_moved_folder_transcribes_without_its_data(tmp_path):
    corpus, exp_dir, moved = tmp_path / "corpus", tmp_path / "exp", tmp_path / "elsewhere" / "model"
    tiny_run.make_corpus(corpus)
    runs.train(tiny_run.config(corpus, exp_dir, num_updates=2))
    symbols = Tokenizer(corpus / "bpe.model").symbols
    path = exp_dir / "checkpoint-2.pt"
    checkpoint = checkpoints.read(path)  # after two updates the model emits blanks only: favor tokens that start a word
    bias = checkpoint["model_avg"]["joiner.output_linear.bias"]
    bias += torch.tensor([0.0] + [8.0 if symbol.startswith("▁") else -8.0 for symbol in symbols[1:]])
    checkpoints.save(checkpoint, path)
    moved.parent.mkdir()
    exp_dir.rename(moved)
    shutil.rmtree(corpus)
    speech = tmp_path / "speech.wav"
    rng = np.random.default_rng(5)
    soundfile.write(speech, rng.standard_normal(32000) * 0.1 * (np.arange(32000) // 2000 % 2 + 0.01), 16000)

    asr = Pathways.from_pretrained(moved, vad="none")
    text = asr.transcribe(speech, language="fr").text
    assert text.split()
    options = ["--exp-dir", str(moved), "--lang", "fr", "--vad", "none", "--output-format", "json"]
    options.append(str(speech))
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == text


def test_training_stores_tokenizer_features_and_architecture(trained):
    exp_dir = trained / "exp"
    assert {path.name for path in exp_dir.iterdir()} >= STORED
    for name in (layout.BPE_MODEL_FILE, layout.TOKENS_FILE):
        assert (exp_dir / name).read_bytes() == (trained / "corpus" / name).read_bytes()
    features = json.loads((exp_dir / layout.FEATURES_FILE).read_text())
    assert (features["sample_rate"], features["num_bins"]) == (16000, 80)
    assert json.loads((exp_dir / layout.CONFIG_FILE).read_text())["model"]["encoder_dim"] == "16"


def test_training_and_mask_search_use_the_tokenizer_of_init_from(trained, moved, monkeypatch):
    monkeypatch.chdir(moved.parent)  # where there is no data/lang_bpe_500
    config = _config(moved, init_from=moved)
    search = tiny_run.search(
        moved.parent / "corpus",
        moved.parent / "masks",
        PruningConfig(prune_rounds=1, updates_per_round=1),
        "en fr",
        init_from=moved / "checkpoint-2.pt",
        bpe_model=None,
    )
    runs.find_masks(search)
    masks = moved.parent / "masks" / layout.MASKS_FILE
    runs.train(
        replace(config, training=replace(config.training, masks=masks), data=replace(config.data, languages="en fr"))
    )
    for folder in ("exp", "masks", "masks/en", "masks/fr"):
        stored = moved.parent / folder / layout.BPE_MODEL_FILE
        assert stored.read_bytes() == (trained / "exp" / layout.BPE_MODEL_FILE).read_bytes(), folder
    asr = Pathways.from_pretrained(moved.parent / "exp")
    assert asr.masks is not None and asr.masks.languages == ("en", "fr")
    assert json.loads((masks.parent / layout.CONFIG_FILE).read_text())["model"]["encoder_dim"] == "16"


def test_resumed_training_uses_its_own_tokenizer(moved, monkeypatch, capsys):
    monkeypatch.chdir(moved.parent)
    config = _config(moved)
    resumed = replace(config, training=replace(config.training, exp_dir=moved, num_updates=4))
    runs.train(resumed)
    assert layout.batch_checkpoint(moved, 4).exists()
    assert "bpe-model" not in capsys.readouterr().out, "no warning about a different tokenizer"


def test_resuming_with_another_tokenizer_fails_and_keeps_the_stored_one(trained, moved, tmp_path):
    other = train_tokenizer([text[::-1] for text in TEXTS.values()], 20, tmp_path / "other")
    before = (moved / layout.BPE_MODEL_FILE).read_bytes()
    config = _config(moved)
    resumed = replace(config, training=replace(config.training, exp_dir=moved, num_updates=4, bpe_model=other))
    with pytest.raises(ValueError, match="hash of --bpe-model"):
        runs.train(resumed)
    assert (moved / layout.BPE_MODEL_FILE).read_bytes() == before != other.read_bytes()


def test_precedence_of_tokenizers(moved, tmp_path):
    stored, given = moved / layout.BPE_MODEL_FILE, Path("given.model")
    default = Path("data/lang_bpe_500/bpe.model")
    new = tmp_path / "new"
    assert choose_tokenizer(new, None, None) == default
    assert choose_tokenizer(new, None, moved) == choose_tokenizer(new, None, moved / "checkpoint-2.pt") == stored
    assert choose_tokenizer(new, given, moved) == given
    assert choose_tokenizer(moved, None, tmp_path / "another") == stored
    store_model_files(new, stored, FbankConfig())
    assert choose_tokenizer(new, None, None) == default, "a folder without checkpoints is not resumed"
    config = _config(moved, init_from=moved, reinit_vocab=True)
    assert config.training.tokenizer_path == default, "new vocabulary: not the one of --init-from"


def test_given_tokenizer_takes_precedence_when_decoding(moved, tmp_path):
    other = train_tokenizer([text[::-1] for text in TEXTS.values()], 20, tmp_path / "other")
    assert load_trained_model(DecodeConfig(exp_dir=moved)).tokenizer.symbols != Tokenizer(other).symbols
    trained_model = load_trained_model(DecodeConfig(exp_dir=moved, bpe_model=other))
    assert trained_model.tokenizer.symbols == Tokenizer(other).symbols


def test_folder_without_stored_files_uses_the_recorded_path(trained, moved, tmp_path):
    for name in STORED:
        (moved / name).unlink()
    with pytest.raises(ValueError, match=r"no SentencePiece model for .*moved: neither .* nor .*--bpe-model"):
        load_trained_model(DecodeConfig(exp_dir=moved))
    recorded = trained / "corpus" / "bpe.model"
    assert find_tokenizer(moved, recorded) == recorded
    (tmp_path / "deleted").mkdir()
    shutil.copyfile(recorded, tmp_path / "deleted" / "bpe.model")
    assert load_trained_model(DecodeConfig(exp_dir=moved)).tokenizer.symbols == Tokenizer(recorded).symbols


def test_model_trained_on_other_features_is_rejected(moved):
    path = moved / layout.FEATURES_FILE
    path.write_text(path.read_text().replace('"num_bins": 80', '"num_bins": 40'))
    with pytest.raises(ValueError, match=r"features\.json: .*num_bins=40 instead of 80.*use the version"):
        Pathways.from_pretrained(moved)
    with pytest.raises(ValueError, match="num_bins=40 instead of 80"):
        runs.train(_config(moved, init_from=moved))
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Pathways.from_pretrained(moved)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"features\.json: expected the feature options, found \[\]"):
        Pathways.from_pretrained(moved)
