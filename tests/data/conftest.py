"""A small corpus of random features."""

from pathlib import Path

import pytest
from speech_cuts import SIZES, TEXTS, lengths, make_cuts, write_cuts

from icefall_pathways.data.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fbank")
    for language, num_cuts in SIZES.items():
        write_cuts(folder, language, "train", make_cuts(folder, f"{language}-train", language, lengths(num_cuts)))
        write_cuts(folder, language, "dev", make_cuts(folder, f"{language}-dev", language, lengths(9)))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(TEXTS.values(), 20, tmp_path_factory.mktemp("lang")))
