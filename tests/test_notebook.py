"""The notebook in examples/ runs from the first to the last cell, with the small experiment of the tests."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tiny_experiment import write_complementary_masks

from icefall_pathways import Pathways
from icefall_pathways.transcription import transcriber

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "pathways.ipynb"


def run_notebook(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Execute the code cells of a notebook in order, in one namespace.

    Returns:
      The namespace after the last cell, and the value of the last expression of each cell by the id of the cell.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    values = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {cell['id']}", "exec"), namespace)
        if last is not None:
            values[cell["id"]] = eval(compile(ast.Expression(last.value), f"cell {cell['id']}", "eval"), namespace)
    return namespace, values


@pytest.fixture
def small_model(exp_dir, experiment, monkeypatch):
    """Prepare an experiment with a pathway per language for the notebook."""
    shutil.copyfile(experiment / "bpe.model", exp_dir / "bpe.model")
    write_complementary_masks(exp_dir)
    monkeypatch.setenv("PATHWAYS_EXP_DIR", str(exp_dir))
    monkeypatch.setenv("PATHWAYS_CUTS_DIR", str(experiment))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(transcriber, "make_gate", lambda name: None)  # the audio is noise
    monkeypatch.chdir(NOTEBOOK.parent)
    return exp_dir


def test_notebook_runs(small_model, capsys):
    namespace, values = run_notebook(NOTEBOOK)
    asr = Pathways.from_pretrained(small_model, decoding_method="modified_beam_search")
    samples = namespace["samples"]
    assert values["load"] == asr.languages == ["en", "nl"]
    assert values["pathways"] == {code: asr.transcribe(samples, code).text for code in asr.languages}
    assert values["stream"] == values["pathways"]["en"] != values["pathways"]["nl"]
    assert [word for word, _, _ in values["words"]] == values["stream"].split()
    printed = capsys.readouterr().out
    assert "reference:  one two three" in printed
    assert "s  partial  " in printed
    assert f"s  final    {values['stream']}\n" in printed
    assert namespace["densities"]["en"] == pytest.approx(0.5, abs=0.02)
    assert namespace["densities"]["any language"] == 1.0
    for cell in ("layers", "overlap"):
        assert isinstance(values[cell], Figure)
        assert values[cell].axes[0].has_data()


def test_notebook_runs_outside_the_repository(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_notebook(NOTEBOOK)[1]["load"] == ["en", "nl"]


def test_notebook_has_no_stored_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_notebook_reports_a_missing_experiment_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PATHWAYS_EXP_DIR", str(tmp_path / "nowhere"))
    monkeypatch.chdir(NOTEBOOK.parent)
    with pytest.raises(ValueError, match=r"no experiment folder .*nowhere"):
        run_notebook(NOTEBOOK)
