"""A model of two languages that identifies them, and audio for it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from running_server import RunningServer, load_model, run_server
from tiny_experiment import write_complementary_masks

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.decoding.language_id.model import LanguageIdModel
from icefall_pathways.experiment import checkpoints, layout


@pytest.fixture(scope="session")
def served_dir(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an experiment whose random model emits only words: in English with pauses, in Dutch without."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = checkpoints.read(experiment / "exp" / "checkpoint-5.pt")
    tokenizer = Tokenizer(experiment / "bpe.model")
    bias = checkpoint["model_avg"]["joiner.output_linear.bias"]
    bias += torch.tensor([10.0] + [8.0 if symbol.startswith("▁") else -8.0 for symbol in tokenizer.symbols[1:]])
    checkpoints.save(checkpoint, folder / "checkpoint-5.pt")
    shutil.copy(experiment / "bpe.model", folder)
    torch.manual_seed(0)
    write_complementary_masks(folder)
    unigrams = {code: [-3.0] * tokenizer.vocab_size for code in ("en", "nl")}
    identifier = LanguageIdModel({}, {"en": 2.0, "nl": 0.0}, unigrams, seconds=0.5)
    identifier.save(layout.language_id_file(folder))
    return folder


@pytest.fixture(scope="session")
def model(served_dir: Path):
    return load_model(served_dir)


@pytest.fixture(scope="module")
def server(model) -> RunningServer:
    with run_server(model) as running:
        yield running


def noise_bursts(seconds: float, seed: int) -> np.ndarray:
    """Return 16-bit samples that the model decodes to words."""
    count = int(16000 * seconds)
    samples = np.random.default_rng(seed).standard_normal(count) * 0.1 * (np.arange(count) // 2000 % 2 + 0.01)
    return (samples * 2**15).astype("<i2")


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    return noise_bursts(3.0, seed=5)
