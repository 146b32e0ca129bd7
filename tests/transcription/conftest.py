"""An experiment whose random model emits words, and audio for it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from icefall_pathways.data.tokenizer import Tokenizer
from icefall_pathways.experiment import checkpoints
from icefall_pathways.transcription import transcriber


@pytest.fixture
def exp_dir(exp_dir: Path, experiment: Path) -> Path:
    """Return the experiment with a model that is biased towards tokens that start a word."""
    path = exp_dir / "checkpoint-5.pt"
    checkpoint, symbols = checkpoints.read(path), Tokenizer(experiment / "bpe.model").symbols
    bias = checkpoint["model_avg"]["joiner.output_linear.bias"]
    bias += torch.tensor([0.0] + [8.0 if symbol.startswith("▁") else -8.0 for symbol in symbols[1:]])
    checkpoints.save(checkpoint, path)
    return exp_dir


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Write a file of noise bursts, which the random model decodes to words."""
    rng = np.random.default_rng(5)
    samples = rng.standard_normal(16000 * 3) * 0.1 * (np.arange(48000) // 2000 % 2 + 0.01)
    soundfile.write(tmp_path / "speech.wav", samples, 16000)
    return tmp_path / "speech.wav"


@pytest.fixture(autouse=True)
def _no_vad(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable voice activity detection, which finds no speech in noise, except in tests of it."""
    if request.path.stem != "test_vad":
        monkeypatch.setattr(transcriber, "make_gate", lambda name: None)
