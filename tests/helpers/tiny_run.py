"""Trainings small enough for tests: random features, a model of two narrow layers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_masks import random_masks
from speech_cuts import TEXTS, lengths, make_cuts, write_cuts

from icefall_pathways.data.datamodule import DataConfig, SpeechDataModule
from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer
from icefall_pathways.experiment import checkpoints
from icefall_pathways.launch.ranks import Rank
from icefall_pathways.models.config import ModelConfig
from icefall_pathways.models.transducer import Transducer, build_model
from icefall_pathways.pathways.masks import PathwayMasks
from icefall_pathways.training import runs
from icefall_pathways.training.callbacks import Callback
from icefall_pathways.training.config import ExperimentConfig, MaskSearchConfig, PruningConfig, TrainingConfig
from icefall_pathways.training.trainer import Trainer

MODEL = ModelConfig(
    num_encoder_layers=2,
    encoder_dim=16,
    nhead=2,
    dim_feedforward=32,
    subsampling_channels="2,4",
    cnn_module_kernel=3,
    decoder_dim=16,
    joiner_dim=16,
)

ZIPFORMER = ModelConfig(encoder_type="zipformer", zipformer="tiny")
LANGUAGES = ["en", "fr", "it"]


def make_corpus(folder: Path) -> None:
    """Write cuts of en, fr and it to `folder`/fbank, and a SentencePiece model to `folder`."""
    fbank = folder / "fbank"
    fbank.mkdir(parents=True)
    for language, text in TEXTS.items():
        for split, num_cuts in (("train", 12), ("dev", 3), ("test", 3)):
            cuts = make_cuts(fbank, f"{language}-{split}", language, lengths(num_cuts), text)
            write_cuts(fbank, language, split, cuts)
    train_tokenizer(TEXTS.values(), 20, folder)


def config(corpus: Path, exp_dir: Path, languages: str = "en fr it", **training: object) -> ExperimentConfig:
    """Return the options of a training of eight updates with a checkpoint after every second."""
    options = {
        "exp_dir": exp_dir,
        "bpe_model": corpus / "bpe.model",
        "num_updates": 8,
        "save_every_n": 2,
        "valid_interval": 4,
        "log_interval": 2,
        "average_period": 1,
        "lr_warmup": 2,
        "warm_updates": 4,
        "ctc_loss_scale": 0.3,
        "tensorboard": False,
    } | training
    data = DataConfig(manifest_dir=corpus / "fbank", languages=languages, max_duration=6.0, num_workers=0)
    return ExperimentConfig(replace(TrainingConfig(), **options), data, MODEL)


def search(
    corpus: Path, exp_dir: Path, pruning: PruningConfig, languages: str = "en fr it", **training: object
) -> MaskSearchConfig:
    """Return the options of a mask search; `pruning` determines its number of updates."""
    base = config(corpus, exp_dir, languages, num_updates=0, **training)
    return MaskSearchConfig(pruning, base.training, base.data)


def make_trainer(config: ExperimentConfig, rank: Rank | None = None, **arguments: object) -> Trainer:
    """Return a trainer of a new model with a CTC head, without writing the files that `runs.train` does.

    Among them are the options of the features, so that a folder without them resumes with those of a new model.
    """
    torch.manual_seed(config.training.seed)
    if config.data.level_norm == "auto":
        config = replace(config, data=replace(config.data, level_norm="running-max"))
    tokenizer = Tokenizer(config.training.bpe_model)
    model = build_model(replace(config.model, ctc_head=True), tokenizer.vocab_size)
    data = SpeechDataModule(config.data, tokenizer)
    return Trainer(config, model, data, tokenizer, rank or Rank(), **arguments)


def newest_checkpoint(exp_dir: Path) -> dict[str, Any]:
    """Return the content of the newest checkpoint of an experiment."""
    newest = checkpoints.newest(exp_dir)
    assert newest is not None
    return newest[1]


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Assert that weights, masks, optimizer states and progress of two checkpoints are bitwise equal."""
    for part in ("model", "model_avg", "masks"):
        assert list(a[part]) == list(b[part])
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part]), part
    for index, state in a["optimizer"].items():
        assert all(torch.equal(value, b["optimizer"][index][key]) for key, value in state.items())
    assert a["update"] == b["update"] and a["best_valid_loss"] == b["best_valid_loss"]


def save_random_masks(
    model: Transducer, path: Path, languages: Sequence[str] = LANGUAGES, seed: int = 1
) -> PathwayMasks:
    """Write random masks of encoder and predictor with 40 % of the entries, and return them."""
    generator = torch.Generator().manual_seed(seed)
    masks = random_masks(model, languages, runs.PRUNE_SCOPES["encoder-predictor"], 0.4, generator)
    masks.save(path)
    return masks


def train_until(config: ExperimentConfig, update: int) -> None:
    """Train until the start of an update, and raise an error there as if the process were killed."""
    with pytest.raises(KilledError):
        runs.train(config, [KillAt(update)])


class KilledError(Exception):
    """Simulated kill of a training."""


class KillAt(Callback):
    """Raise `KilledError` at the start of an update."""

    def __init__(self, update: int) -> None:
        self._update = update

    def on_update_start(self, state, batches, wait_seconds):
        if state.update == self._update:
            raise KilledError


class BatchRecorder(Callback):
    """Record the language and the ids of the cuts of each batch, by update."""

    def __init__(self) -> None:
        self.batches = []

    def on_update_start(self, state, batches, wait_seconds):
        self.batches.append([(batch.language, batch.cut_ids) for batch in batches])


class UpdateRecorder(Callback):
    """Record the return value of `function(state, result)` after each update, by update."""

    def __init__(self, function) -> None:
        self._function = function
        self.values = {}

    def on_update_end(self, state, result):
        self.values[state.update] = self._function(state, result)
