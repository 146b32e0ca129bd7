from pathlib import Path

import pytest
import tiny_run

from icefall_pathways.experiment import checkpoints
from icefall_pathways.training import runs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "data"
    tiny_run.make_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def dense(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished dense training; tests must not change it."""
    exp_dir = tmp_path_factory.mktemp("exp") / "dense"
    runs.train(tiny_run.config(corpus, exp_dir))
    return exp_dir


@pytest.fixture(scope="session")
def masks_file(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of random masks for the model of the dense training."""
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    tiny_run.save_random_masks(checkpoints.build(tiny_run.newest_checkpoint(dense)), path)
    return path
