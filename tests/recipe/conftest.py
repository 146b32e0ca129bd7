"""Fixtures of the recipe's tests."""

from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "egs" / "mls" / "ASR"


@pytest.fixture
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty folder with links to the recipe's scripts."""
    for name in ("local", "pruned_transducer_pathways"):
        (tmp_path / name).symlink_to(RECIPE / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
