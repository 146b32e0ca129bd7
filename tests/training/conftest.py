from pathlib import Path

import pytest
import tiny_run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "data"
    tiny_run.make_corpus(folder)
    return folder
